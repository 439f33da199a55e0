// Calls the quantized product on random shapes with memory of exactly the size that it may touch; for sanitizers.

#include <cstdint>
#include <random>
#include <vector>

#include "driver.h"
#include "gated_silu.h"
#include "instruction_set.h"
#include "quantized_linear.h"
#include "row_product.h"
#include "row_threads.h"

namespace {

using nanovllm::WeightOrder;

// The weights (num_out, num_in) in panels.
std::vector<std::int8_t> in_panels(const std::vector<std::int8_t>& weight, std::int64_t num_in) {
  constexpr std::int64_t kOutputs = nanovllm::kPanelOutputs, kInputs = nanovllm::kPanelInputs;
  std::vector<std::int8_t> panels(weight.size());
  for (std::size_t i = 0; i < weight.size(); ++i) {
    const std::int64_t n = i / num_in, k = i % num_in, step = n / kOutputs * (num_in / kInputs) + k / kInputs;
    panels[(step * kOutputs + n % kOutputs) * kInputs + k % kInputs] = weight[i];
  }
  return panels;
}

// Whether the kernel's values are those of the contract, summed in plain C++.
bool agrees(WeightOrder order, std::mt19937& random, std::int64_t num_rows, std::int64_t num_in, std::int64_t num_out) {
  std::vector<float> x(num_rows * num_in), scale(num_out), output(num_rows * num_out);
  std::vector<std::int8_t> weight(num_out * num_in);
  for (float& value : x) value = static_cast<float>(static_cast<int>(random() % 255) - 127);
  for (std::int64_t t = 0; t < num_rows; ++t) x[t * num_in + random() % num_in] = 127;  // so that the scale is 1
  for (std::int8_t& value : weight) value = static_cast<std::int8_t>(static_cast<int>(random() % 255) - 127);
  for (float& value : scale) value = 0.5f;
  const nanovllm::SpawnedThreads threads(2);
  const std::vector<std::int8_t> stored = order == WeightOrder::rows ? weight : in_panels(weight, num_in);
  const std::vector<std::int32_t> sums = nanovllm::weight_row_sums(stored.data(), num_out, num_in, threads, order);
  nanovllm::quantized_linear({{x.data()}, num_rows, num_in, stored.data(), scale.data(), sums.data(), num_out,
                              output.data(), nullptr, nullptr, order},
                             threads);
  const float row_scale = 127.0f * static_cast<float>(1.0 / 127);
  for (std::int64_t t = 0; t < num_rows; ++t) {
    for (std::int64_t n = 0; n < num_out; ++n) {
      std::int32_t sum = 0;
      for (std::int64_t k = 0; k < num_in; ++k)
        sum += static_cast<std::int32_t>(x[t * num_in + k]) * weight[n * num_in + k];
      if (output[t * num_out + n] != static_cast<float>(sum) * 0.5f * row_scale) return false;
    }
  }
  return true;
}

// Whether a product joined with what is before and after it gives what these give one after the other.
bool joined_agrees(std::mt19937& random, nanovllm::RowSource source, std::int64_t num_rows, std::int64_t num_in,
                   std::int64_t num_out) {
  const bool gated = source == nanovllm::RowSource::gated_silu, normed = source == nanovllm::RowSource::rms_norm;
  const std::int64_t width = gated ? 2 * num_in : num_in;
  const auto x = numbers(random, num_rows * width), gain = numbers(random, num_in), bias = numbers(random, num_out);
  const auto residual = numbers(random, num_rows * num_out), scale = numbers(random, num_out);
  const Array<float> made(new float[num_rows * num_in]), output(new float[num_rows * num_out]);
  const Array<float> expected(new float[num_rows * num_out]);
  std::vector<std::int8_t> weight(num_out * num_in);
  for (std::int8_t& value : weight) value = static_cast<std::int8_t>(static_cast<int>(random() % 255) - 127);
  const nanovllm::SpawnedThreads threads(2);
  const std::vector<std::int32_t> sums =
      nanovllm::weight_row_sums(weight.data(), num_out, num_in, threads, WeightOrder::panels);
  for (std::int64_t t = 0; t < num_rows; ++t) {
    const float* row = x.get() + t * width;
    float* to = made.get() + t * num_in;
    if (gated) nanovllm::gated_silu(row, 1, num_in, to, threads);
    if (normed)
      nanovllm::product_functions(nanovllm::instruction_set()).normalize(row, gain.get(), num_in, 1e-6f, to);
  }
  const float* rows = gated || normed ? made.get() : x.get();
  nanovllm::QuantizedLayer layer{{rows},   num_rows, num_in,  weight.data(),  scale.get(), sums.data(),
                                 num_out, expected.get(), nullptr, nullptr, WeightOrder::panels};
  nanovllm::quantized_linear(layer, threads);
  layer.input = {x.get(), source, gain.get(), 1e-6f};
  layer.bias = bias.get();
  layer.residual = residual.get();
  layer.output = output.get();
  nanovllm::quantized_linear(layer, threads);
  for (std::int64_t i = 0; i < num_rows * num_out; ++i)
    if (output[i] != expected[i] + bias[i % num_out] + residual[i]) return false;
  return true;
}

}  // namespace

std::string call_quantized_linear(std::mt19937& random, int i) {
  const std::int64_t num_rows = 1 + random() % (i % 5 == 0 ? 200 : 30), num_in = 1 + random() % 300;
  if (!agrees(WeightOrder::rows, random, num_rows, num_in, 1 + random() % 150)) return "wrong";
  const std::int64_t whole_in = 4 * (1 + random() % 75), whole_out = 16 * (1 + random() % 10);
  if (!agrees(WeightOrder::panels, random, num_rows, whole_in, whole_out)) return "wrong in panels";
  const auto source = static_cast<nanovllm::RowSource>(i % 3);
  if (joined_agrees(random, source, num_rows, whole_in, whole_out)) return "";
  return "wrong with source " + std::to_string(i % 3);
}
