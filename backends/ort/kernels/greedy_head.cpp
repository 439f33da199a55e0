#include "greedy_head.h"

#include <algorithm>
#include <cstring>
#include <exception>

#include "greedy_rows.h"
#include "parts.h"
#include "quantized_linear.h"
#include "row_threads.h"

namespace nanovllm {
namespace {

constexpr std::size_t kTaskNumbers = std::size_t{1} << 14;  // to quantize: microseconds of work

QuantizedRows quantized_rows(const float* x, std::size_t num_rows, std::size_t num_in, const Parallel& parallel) {
  const ProductFunctions& functions = product_functions(instruction_set());
  QuantizedRows rows(num_rows, num_in);
  const std::size_t rows_per_task = kTaskNumbers / std::max<std::size_t>(1, num_in) + 1;
  run_parts(parallel, num_parts(num_rows, rows_per_task), [&](std::size_t index) {
    const Span span = part(num_rows, rows_per_task, index);
    for (std::size_t t = span.begin; t < span.end; ++t) {
      std::uint8_t* row = rows.integers.get() + t * rows.stride;
      rows.scales[t] = functions.quantize(x + t * num_in, num_in, row);
      std::fill(row + num_in, row + rows.stride, std::uint8_t{kZero});
    }
  });
  return rows;
}

// The rows at `places`.
QuantizedRows some_of(const QuantizedRows& rows, const std::vector<std::size_t>& places, std::size_t num_in) {
  QuantizedRows some(places.size(), num_in);
  for (std::size_t i = 0; i < places.size(); ++i) {
    std::memcpy(some.integers.get() + i * rows.stride, rows.integers.get() + places[i] * rows.stride, rows.stride);
    some.scales[i] = rows.scales[places[i]];
  }
  return some;
}

}  // namespace

void greedy_head(const float* x, std::int64_t num_rows, const GreedyTable& table,
                 const std::function<void(const UseRowSums&)>& with_row_sums, std::int64_t* ids,
                 const Parallel& parallel) {
  if (num_rows == 0) return;
  const auto num_in = static_cast<std::size_t>(table.num_in);
  const QuantizedRows rows = quantized_rows(x, static_cast<std::size_t>(num_rows), num_in, parallel);
  std::vector<std::size_t> left;  // rows without an id yet
  if (table.sketch != nullptr && rows.num_rows <= kSketchRows) {
    const std::vector<Best> best = best_by_sketch(rows, table, parallel);
    for (std::size_t t = 0; t < rows.num_rows; ++t) {
      ids[t] = best[t].id;
      if (best[t].id >= table.num_out) left.push_back(t);
    }
    if (left.empty()) return;
  } else {
    for (std::size_t t = 0; t < rows.num_rows; ++t) left.push_back(t);
  }
  const bool is_all = left.size() == rows.num_rows;
  with_row_sums([&](const std::int32_t* row_sums) {
    const std::vector<Best> best = is_all ? best_of_all(rows, table, row_sums, parallel)
                                          : best_of_all(some_of(rows, left, num_in), table, row_sums, parallel);
    for (std::size_t i = 0; i < left.size(); ++i) ids[left[i]] = best[i].id;
  });
}

}  // namespace nanovllm

// For ctypes: runs on threads of its own. sketch: may be null. Returns 0, or 1 where memory ran out.
extern "C" __attribute__((visibility("default"))) int nanovllm_greedy_head(
    const float* x, std::int64_t num_rows, std::int64_t num_in, const std::int8_t* weight, const float* weight_scale,
    const std::uint8_t* sketch, const float* sketch_scale, const float* sketch_step, std::int64_t num_out,
    std::int64_t* ids, std::int64_t num_threads) {
  try {
    const nanovllm::SpawnedThreads threads(static_cast<std::size_t>(num_threads));
    const auto with_row_sums = [&](const nanovllm::UseRowSums& use) {
      use(nanovllm::weight_row_sums(weight, num_out, num_in, threads).data());
    };
    nanovllm::greedy_head(x, num_rows, {weight, weight_scale, sketch, sketch_scale, sketch_step, num_out, num_in},
                          with_row_sums, ids, threads);
  } catch (const std::exception&) {
    return 1;
  }
  return 0;
}
