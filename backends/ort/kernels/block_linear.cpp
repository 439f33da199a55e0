#include "block_linear.h"

#include <algorithm>
#include <exception>
#include <memory>

#include "block_product.h"
#include "parts.h"
#include "row_threads.h"

namespace nanovllm {
namespace {

constexpr std::size_t kTaskBytes = std::size_t{1} << 17;  // of weights: in smaller pieces memory is read more slowly
constexpr std::size_t kTaskNumbers = std::size_t{1} << 14;  // to quantize: microseconds of work
constexpr std::size_t kPackedRows = 192;                  // of a task with a packed panel, which many rows share

}  // namespace

void block_linear(const RowInput& input, std::int64_t num_rows, const BlockWeights& weights, const float* residual,
                  float* output, const Parallel& parallel) {
  const BlockFunctions& functions = block_functions(instruction_set(), weights.bits);
  const auto rows = static_cast<std::size_t>(num_rows), columns = static_cast<std::size_t>(weights.num_in);
  const auto outputs = static_cast<std::size_t>(weights.num_out);
  if (rows == 0 || outputs == 0) return;
  const std::size_t blocks = num_parts(columns, kBlock), stride = blocks * kBlock;
  const std::unique_ptr<std::int8_t[]> quantized(new std::int8_t[rows * stride]);
  const std::unique_ptr<float[]> row_scale(new float[rows * blocks]);
  const std::unique_ptr<std::int32_t[]> row_offset(new std::int32_t[rows * blocks]);

  const std::size_t rows_per_task = kTaskNumbers / std::max<std::size_t>(1, columns) + 1;
  run_parts(parallel, num_parts(rows, rows_per_task), [&](std::size_t index) {
    const std::unique_ptr<float[]> made(input.source == RowSource::plain ? nullptr : new float[columns]);
    const Span span = part(rows, rows_per_task, index);
    for (std::size_t t = span.begin; t < span.end; ++t)
      functions.quantize(source_row(input, columns, t, made.get()), columns, quantized.get() + t * stride,
                         row_scale.get() + t * blocks, row_offset.get() + t * blocks);
  });

  const BlockProduct product{quantized.get(),  row_scale.get(), row_offset.get(), rows,    blocks,
                             weights.integers, weights.scales,  weights.bias,     outputs, output,
                             residual};
  if (functions.multiply_packed != nullptr && rows >= functions.pack_from) {
    const std::size_t num_panels = num_parts(outputs, kBlockPanelOutputs);
    run_parts(parallel, num_panels * num_parts(rows, kPackedRows), [&](std::size_t index) {
      const std::unique_ptr<std::uint8_t[]> panel(new std::uint8_t[blocks * kBlockPanelBytes]);
      functions.multiply_packed(product, part(outputs, kBlockPanelOutputs, index % num_panels),
                                part(rows, kPackedRows, index / num_panels), panel.get());
    });
  } else {
    const std::size_t bytes_per_output = std::max<std::size_t>(1, stride * static_cast<std::size_t>(weights.bits) / 8);
    const std::size_t outputs_per_task = (kTaskBytes / bytes_per_output / 4 + 1) * 4;
    run_parts(parallel, num_parts(outputs, outputs_per_task),
              [&](std::size_t index) { functions.multiply(product, part(outputs, outputs_per_task, index)); });
  }
}

}  // namespace nanovllm

// For ctypes: runs on threads of its own. bias: may be null. Returns 0, or 1 where memory ran out.
extern "C" __attribute__((visibility("default"))) int nanovllm_block_linear(
    const float* x, std::int64_t num_rows, std::int64_t num_in, const std::uint8_t* integers, const float* scales,
    const float* bias, std::int64_t num_out, int bits, float* output, std::int64_t num_threads) {
  try {
    const nanovllm::SpawnedThreads threads(static_cast<std::size_t>(num_threads));
    nanovllm::block_linear({x}, num_rows, {integers, scales, bias, num_out, num_in, bits}, nullptr, output, threads);
  } catch (const std::exception&) {
    return 1;
  }
  return 0;
}
