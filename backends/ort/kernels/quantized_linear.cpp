#include "quantized_linear.h"

#include <algorithm>
#include <exception>
#include <memory>
#include <new>
#include <numeric>

#include "parts.h"
#include "row_threads.h"

namespace nanovllm {
namespace {

constexpr std::size_t kTaskBytes = std::size_t{1} << 16;    // of weights: microseconds of work
constexpr std::size_t kTaskNumbers = std::size_t{1} << 13;  // to quantize, likewise
constexpr std::size_t kTaskRows = 192;  // of a task with a group of panels, which many rows share

// Memory for a group of panels.
class Panels {
 public:
  explicit Panels(std::size_t num_bytes)
      : bytes_(static_cast<std::int8_t*>(::operator new(num_bytes, std::align_val_t{kPanelAlignment}))) {}
  std::int8_t* get() const { return bytes_.get(); }

 private:
  struct Free {
    void operator()(std::int8_t* bytes) const { ::operator delete(bytes, std::align_val_t{kPanelAlignment}); }
  };
  std::unique_ptr<std::int8_t, Free> bytes_;
};

// The rows that are multiplied, (num_rows, stride), and their scales.
struct QuantizedRows {
  QuantizedRows(std::size_t num_rows, std::size_t stride)
      : stride(stride), numbers(new std::uint8_t[num_rows * stride]), scales(new float[num_rows]) {}

  std::size_t stride;
  std::unique_ptr<std::uint8_t[]> numbers;
  std::unique_ptr<float[]> scales;
};

QuantizedRows quantize_rows(const QuantizedLayer& layer, const ProductFunctions& functions, const Parallel& parallel) {
  const auto rows = static_cast<std::size_t>(layer.num_rows), columns = static_cast<std::size_t>(layer.num_in);
  QuantizedRows result(rows, num_parts(columns, kRowStep) * kRowStep);
  const std::size_t rows_per_task = kTaskNumbers / std::max<std::size_t>(1, columns) + 1;
  run_parts(parallel, num_parts(rows, rows_per_task), [&](std::size_t index) {
    const std::unique_ptr<float[]> made(layer.input.source == RowSource::plain ? nullptr : new float[columns]);
    const Span span = part(rows, rows_per_task, index);
    for (std::size_t t = span.begin; t < span.end; ++t) {
      std::uint8_t* row = result.numbers.get() + t * result.stride;
      result.scales[t] = functions.quantize(source_row(layer.input, columns, t, made.get()), columns, row);
      std::fill(row + columns, row + result.stride, std::uint8_t{kZero});
    }
  });
  return result;
}

// Adds the numbers of a panel to the sums of its outputs. In between they are added up in 16 bits, which many fit into.
void add_panel(const std::int8_t* panel, std::size_t num_in, std::int32_t* sums) {
  constexpr std::size_t kStepNumbers = kPanelOutputs * kPanelInputs, kSteps = 256;  // of at most 128 each
  for (std::size_t left = num_in / kPanelInputs; left > 0;) {
    std::int16_t some[kStepNumbers] = {};
    const std::size_t steps = std::min(left, kSteps);
    for (std::size_t step = 0; step < steps; ++step, panel += kStepNumbers)
      for (std::size_t j = 0; j < kStepNumbers; ++j) some[j] = static_cast<std::int16_t>(some[j] + panel[j]);
    for (std::size_t j = 0; j < kStepNumbers; ++j) sums[j / kPanelInputs] += some[j];
    left -= steps;
  }
}

}  // namespace

std::vector<std::int32_t> weight_row_sums(const std::int8_t* weight, std::int64_t num_out, std::int64_t num_in,
                                          const Parallel& parallel, WeightOrder order) {
  const auto outputs = static_cast<std::size_t>(num_out), columns = static_cast<std::size_t>(num_in);
  const bool is_rows = order == WeightOrder::rows;
  const std::size_t width = is_rows ? 1 : kPanelOutputs;
  std::vector<std::int32_t> sums(outputs);
  const std::size_t outputs_per_task = (kTaskBytes / std::max<std::size_t>(1, columns) / width + 1) * width;
  run_parts(parallel, num_parts(outputs, outputs_per_task), [&](std::size_t index) {
    const Span span = part(outputs, outputs_per_task, index);
    for (std::size_t first = span.begin; first < span.end; first += width) {
      const std::int8_t* from = weight + first * columns;
      if (is_rows)
        sums[first] = std::accumulate(from, from + columns, std::int32_t{0});
      else
        add_panel(from, columns, sums.data() + first);
    }
  });
  return sums;
}

void quantized_linear(const QuantizedLayer& layer, const Parallel& parallel) {
  const ProductFunctions& functions = product_functions(instruction_set());
  const auto rows = static_cast<std::size_t>(layer.num_rows), columns = static_cast<std::size_t>(layer.num_in);
  const auto outputs = static_cast<std::size_t>(layer.num_out);
  if (rows == 0 || outputs == 0) return;
  const QuantizedRows quantized = quantize_rows(layer, functions, parallel);
  const Product product{quantized.numbers.get(), quantized.scales.get(), rows,         quantized.stride, layer.weight,
                        layer.weight_scale,      layer.weight_row_sums,  columns,      outputs,          layer.output,
                        layer.bias,              layer.residual};
  const bool is_panels = layer.order == WeightOrder::panels;
  if (is_panels || (functions.multiply_packed != nullptr && rows >= functions.pack_from)) {
    const std::size_t num_groups = num_parts(outputs, kGroupOutputs);
    run_parts(parallel, num_groups * num_parts(rows, kTaskRows), [&](std::size_t index) {
      const Span group = part(outputs, kGroupOutputs, index % num_groups);
      const Span some_rows = part(rows, kTaskRows, index / num_groups);
      if (is_panels) return functions.multiply_panels(product, group, some_rows);
      const Panels panels(kGroupOutputs * quantized.stride);
      functions.multiply_packed(product, group, some_rows, panels.get());
    });
  } else {
    const std::size_t outputs_per_task = (kTaskBytes / std::max<std::size_t>(1, columns) / 4 + 1) * 4;
    run_parts(parallel, num_parts(outputs, outputs_per_task),
              [&](std::size_t index) { functions.multiply(product, part(outputs, outputs_per_task, index)); });
  }
}

}  // namespace nanovllm

// For ctypes: sums the rows of the weight first, and runs on threads of its own. in_panels: the order of the weights.
// Returns 0, or 1 where memory ran out.
extern "C" __attribute__((visibility("default"))) int nanovllm_quantized_linear(
    const float* x, std::int64_t num_rows, std::int64_t num_in, const std::int8_t* weight, const float* weight_scale,
    std::int64_t num_out, std::int64_t in_panels, float* output, std::int64_t num_threads) {
  try {
    const auto order = in_panels != 0 ? nanovllm::WeightOrder::panels : nanovllm::WeightOrder::rows;
    const nanovllm::SpawnedThreads threads(static_cast<std::size_t>(num_threads));
    const std::vector<std::int32_t> sums = nanovllm::weight_row_sums(weight, num_out, num_in, threads, order);
    nanovllm::quantized_linear({{x}, num_rows, num_in, weight, weight_scale, sums.data(), num_out, output, nullptr,
                                nullptr, order},
                               threads);
  } catch (const std::exception&) {
    return 1;
  }
  return 0;
}
