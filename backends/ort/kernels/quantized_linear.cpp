#include "quantized_linear.h"

#include <algorithm>
#include <exception>
#include <memory>

#include "parts.h"
#include "row_product.h"
#include "row_threads.h"

namespace nanovllm {
namespace {

constexpr std::size_t kTaskBytes = std::size_t{1} << 16;  // of weights or of numbers to quantize: microseconds of work
constexpr std::size_t kPackedRows = 192;                  // of a task with a packed panel, which many rows share

}  // namespace

std::vector<std::int32_t> weight_row_sums(const std::int8_t* weight, std::int64_t num_out, std::int64_t num_in,
                                          const Parallel& parallel) {
  const auto rows = static_cast<std::size_t>(num_out), columns = static_cast<std::size_t>(num_in);
  std::vector<std::int32_t> sums(rows);
  const std::size_t rows_per_task = kTaskBytes / std::max<std::size_t>(1, columns) + 1;
  run_parts(parallel, num_parts(rows, rows_per_task), [&](std::size_t index) {
    const Span span = part(rows, rows_per_task, index);
    for (std::size_t i = span.begin; i < span.end; ++i) {
      std::int32_t sum = 0;
      for (std::size_t k = 0; k < columns; ++k) sum += weight[i * columns + k];
      sums[i] = sum;
    }
  });
  return sums;
}

void quantized_linear(const float* x, std::int64_t num_rows, std::int64_t num_in, const std::int8_t* weight,
                      const float* weight_scale, const std::int32_t* weight_row_sums, std::int64_t num_out,
                      float* output, const Parallel& parallel) {
  const ProductFunctions& functions = product_functions(instruction_set());
  const auto rows = static_cast<std::size_t>(num_rows), columns = static_cast<std::size_t>(num_in);
  const auto outputs = static_cast<std::size_t>(num_out);
  if (rows == 0 || outputs == 0) return;
  const std::size_t stride = num_parts(columns, kRowStep) * kRowStep;
  const std::unique_ptr<std::uint8_t[]> quantized(new std::uint8_t[rows * stride]);
  const std::unique_ptr<float[]> row_scale(new float[rows]);

  const std::size_t rows_per_task = kTaskBytes / sizeof(float) / std::max<std::size_t>(1, columns) + 1;
  run_parts(parallel, num_parts(rows, rows_per_task), [&](std::size_t index) {
    const Span span = part(rows, rows_per_task, index);
    for (std::size_t t = span.begin; t < span.end; ++t) {
      row_scale[t] = functions.quantize(x + t * columns, columns, quantized.get() + t * stride);
      std::fill(quantized.get() + t * stride + columns, quantized.get() + (t + 1) * stride, std::uint8_t{kZero});
    }
  });

  const Product product{quantized.get(), row_scale.get(), rows,    stride, weight, weight_scale,
                        weight_row_sums, columns,         outputs, output};
  if (functions.multiply_packed != nullptr && rows >= functions.pack_from) {
    const std::size_t num_panels = num_parts(outputs, kPanelOutputs);
    run_parts(parallel, num_panels * num_parts(rows, kPackedRows), [&](std::size_t index) {
      const std::unique_ptr<std::int8_t[]> panel(new std::int8_t[kPanelOutputs * stride]);
      functions.multiply_packed(product, part(outputs, kPanelOutputs, index % num_panels),
                                part(rows, kPackedRows, index / num_panels), panel.get());
    });
  } else {
    const std::size_t outputs_per_task = (kTaskBytes / std::max<std::size_t>(1, columns) / 4 + 1) * 4;
    run_parts(parallel, num_parts(outputs, outputs_per_task),
        [&](std::size_t index) { functions.multiply(product, part(outputs, outputs_per_task, index)); });
  }
}

}  // namespace nanovllm

// For ctypes: sums the rows of the weight first, and runs on threads of its own. Returns 0, or 1 where memory ran out.
extern "C" __attribute__((visibility("default"))) int nanovllm_quantized_linear(
    const float* x, std::int64_t num_rows, std::int64_t num_in, const std::int8_t* weight, const float* weight_scale,
    std::int64_t num_out, float* output, std::int64_t num_threads) {
  try {
    const nanovllm::SpawnedThreads threads(static_cast<std::size_t>(num_threads));
    const std::vector<std::int32_t> sums = nanovllm::weight_row_sums(weight, num_out, num_in, threads);
    nanovllm::quantized_linear(x, num_rows, num_in, weight, weight_scale, sums.data(), num_out, output, threads);
  } catch (const std::exception&) {
    return 1;
  }
  return 0;
}
