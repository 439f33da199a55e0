// The arg-max out of the whole product: each task multiplies some groups and keeps the best output of every row.

#include <algorithm>

#include "greedy_rows.h"
#include "parts.h"

namespace nanovllm {
namespace {

constexpr std::size_t kTaskGroups = 8;  // of kGroupOutputs outputs: 100 microseconds of work for 48 rows
constexpr std::size_t kRowsAtOnce = 256;

// As best.consider() for n values whose ids follow each other, and follow the best one's. Most often none is better,
// which is found out without a branch for each value.
void consider_all(const float* values, std::size_t n, std::size_t first_id, Best& best) {
  int any = 0;
  for (std::size_t i = 0; i < n; ++i) any |= !(values[i] <= best.value);
  if (any == 0) return;
  for (std::size_t i = 0; i < n && !std::isnan(best.value); ++i)
    if (!(values[i] <= best.value)) best = {values[i], static_cast<std::int64_t>(first_id + i)};
}

// The product with some outputs alone, written to `output`.
Product with_outputs(const Product& product, Span outputs, float* output) {
  Product some = product;
  some.weight += outputs.begin * product.num_in;
  some.weight_scale += outputs.begin;
  some.weight_row_sums += outputs.begin;
  some.num_out = outputs.end - outputs.begin;
  some.output = output;
  return some;
}

// best (product.num_rows,) of the outputs.
void best_of_outputs(const Product& product, Span outputs, Best* best) {
  const ProductFunctions& functions = product_functions(instruction_set());
  const bool packed = functions.multiply_packed != nullptr && product.num_rows >= functions.pack_from;
  const std::unique_ptr<std::int8_t[]> panel(new std::int8_t[packed ? kGroupOutputs * product.stride : 0]);
  const std::unique_ptr<float[]> logits(new float[product.num_rows * kGroupOutputs]);
  for (std::size_t begin = outputs.begin; begin < outputs.end; begin += kGroupOutputs) {
    const Product some = with_outputs(product, {begin, std::min(begin + kGroupOutputs, outputs.end)}, logits.get());
    if (packed)
      functions.multiply_packed(some, {0, some.num_out}, {0, some.num_rows}, panel.get());
    else
      functions.multiply(some, {0, some.num_out});
    for (std::size_t t = 0; t < some.num_rows; ++t) {
      const float* values = logits.get() + t * some.num_out;
      if (begin == outputs.begin) best[t] = {values[0], static_cast<std::int64_t>(begin)};
      consider_all(values, some.num_out, begin, best[t]);
    }
  }
}

}  // namespace

std::vector<Best> best_of_all(const QuantizedRows& rows, const GreedyTable& table, const std::int32_t* row_sums,
                              const Parallel& parallel) {
  const auto num_in = static_cast<std::size_t>(table.num_in), num_out = static_cast<std::size_t>(table.num_out);
  const std::size_t num_tasks = num_parts(num_out, kTaskGroups * kGroupOutputs);
  std::vector<Best> best(rows.num_rows), bests;
  for (std::size_t first = 0; first < rows.num_rows; first += kRowsAtOnce) {
    const std::size_t num_rows = std::min(kRowsAtOnce, rows.num_rows - first);
    const Product product{rows.integers.get() + first * rows.stride,
                          rows.scales.get() + first,
                          num_rows,
                          rows.stride,
                          table.weight,
                          table.weight_scale,
                          row_sums,
                          num_in,
                          num_out,
                          nullptr};
    bests.assign(num_tasks * num_rows, Best());
    run_parts(parallel, num_tasks, [&](std::size_t index) {
      best_of_outputs(product, part(num_out, kTaskGroups * kGroupOutputs, index), bests.data() + index * num_rows);
    });
    for (std::size_t i = 0; i < bests.size(); ++i) best[first + i % num_rows].consider(bests[i]);
  }
  return best;
}

}  // namespace nanovllm
