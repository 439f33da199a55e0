// Calls the block product on random shapes with memory of exactly the size that it may touch; for sanitizers.

#include <cstdint>
#include <random>
#include <vector>

#include "block_linear.h"
#include "driver.h"
#include "gated_silu.h"
#include "instruction_set.h"
#include "row_product.h"
#include "row_threads.h"

namespace {

constexpr std::int64_t kBlock = 128;

// Whether the kernel's values are those of the contract, summed in plain C++.
bool agrees(std::mt19937& random, std::int64_t num_rows, std::int64_t num_in, std::int64_t num_out, int bits) {
  const std::int64_t blocks = (num_in + kBlock - 1) / kBlock, block_bytes = kBlock * bits / 8;
  std::vector<float> x(num_rows * num_in), output(num_rows * num_out);
  std::vector<float> scale(num_out * blocks, 0.5f), bias(num_out, 3.0f);
  std::vector<std::uint8_t> weight(num_out * blocks * block_bytes);
  for (float& value : x) value = static_cast<float>(static_cast<int>(random() % 255) - 127);
  for (std::int64_t t = 0; t < num_rows; ++t)
    for (std::int64_t k = 0; k < num_in; k += kBlock) x[t * num_in + k] = 127;  // so that scales are 1
  for (std::uint8_t& value : weight) value = static_cast<std::uint8_t>(random());
  const bool has_bias = random() % 2 != 0;
  nanovllm::block_linear({x.data()}, num_rows,
                         {weight.data(), scale.data(), has_bias ? bias.data() : nullptr, num_out, num_in, bits},
                         nullptr, output.data(), nanovllm::SpawnedThreads(2));
  const float row_scale = 127.0f * static_cast<float>(1.0 / 127);
  for (std::int64_t t = 0; t < num_rows; ++t) {
    for (std::int64_t n = 0; n < num_out; ++n) {
      float total = 0;
      for (std::int64_t b = 0; b < blocks; ++b) {
        std::int32_t sum = 0;
        for (std::int64_t k = b * kBlock; k < num_in && k < (b + 1) * kBlock; ++k) {
          const std::uint8_t* row = weight.data() + n * blocks * block_bytes;
          const int integer = bits == 8 ? row[k] - 128 : (row[k / 2] >> (k % 2 * 4) & 15) - 8;
          sum += static_cast<std::int32_t>(x[t * num_in + k]) * integer;
        }
        total += static_cast<float>(sum) * (0.5f * row_scale);
      }
      if (output[t * num_out + n] != (has_bias ? total + 3.0f : total)) return false;
    }
  }
  return true;
}

// Whether a product joined with what is before and after it gives what these give one after the other.
bool joined_agrees(std::mt19937& random, nanovllm::RowSource source, std::int64_t num_rows, std::int64_t num_in,
                   std::int64_t num_out, int bits) {
  const std::int64_t blocks = (num_in + kBlock - 1) / kBlock;
  const bool gated = source == nanovllm::RowSource::gated_silu, normed = source == nanovllm::RowSource::rms_norm;
  const std::int64_t width = gated ? 2 * num_in : num_in;
  const auto x = numbers(random, num_rows * width), gain = numbers(random, num_in), bias = numbers(random, num_out);
  const auto residual = numbers(random, num_rows * num_out), scale = numbers(random, num_out * blocks);
  const Array<float> made(new float[num_rows * num_in]), output(new float[num_rows * num_out]);
  const Array<float> expected(new float[num_rows * num_out]);
  std::vector<std::uint8_t> weight(num_out * blocks * kBlock * bits / 8);
  for (std::uint8_t& value : weight) value = static_cast<std::uint8_t>(random());
  const nanovllm::SpawnedThreads threads(2);
  for (std::int64_t t = 0; t < num_rows; ++t) {
    const float* row = x.get() + t * width;
    float* to = made.get() + t * num_in;
    if (gated) nanovllm::gated_silu(row, 1, num_in, to, threads);
    if (normed)
      nanovllm::product_functions(nanovllm::instruction_set()).normalize(row, gain.get(), num_in, 1e-6f, to);
  }
  const float* rows = gated || normed ? made.get() : x.get();
  const nanovllm::BlockWeights weights{weight.data(), scale.get(), bias.get(), num_out, num_in, bits};
  nanovllm::block_linear({rows}, num_rows, weights, nullptr, expected.get(), threads);
  const nanovllm::RowInput input{x.get(), source, gain.get(), 1e-6f};
  nanovllm::block_linear(input, num_rows, weights, residual.get(), output.get(), threads);
  for (std::int64_t i = 0; i < num_rows * num_out; ++i)
    if (output[i] != expected[i] + residual[i]) return false;
  return true;
}

}  // namespace

std::string call_block_linear(std::mt19937& random, int i) {
  const std::int64_t num_rows = 1 + random() % (i % 5 == 0 ? 200 : 30), num_in = 1 + random() % 400;
  const int bits = i % 2 == 0 ? 4 : 8;
  if (!agrees(random, num_rows, num_in, 1 + random() % 150, bits)) return "wrong";
  const auto source = static_cast<nanovllm::RowSource>(i % 3);
  if (joined_agrees(random, source, num_rows, num_in, 1 + random() % 150, bits)) return "";
  return "wrong with source " + std::to_string(i % 3);
}
