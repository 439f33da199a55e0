// `nanovllm::GreedyHead_v1` (contract: export/greedy_head.py) on the host's threads: the arg-max of a quantized product
// without the product itself.
#pragma once

#include <cstdint>
#include <functional>

#include "parallel.h"

namespace nanovllm {

// The table and, where `sketch` is not null, its sketch.
struct GreedyTable {
  const std::int8_t* weight;     // (num_out, num_in)
  const float* weight_scale;     // (num_out,)
  const std::uint8_t* sketch;    // (num_out, blocks of num_in, 64)
  const float* sketch_scale;     // (num_out, blocks of num_in)
  const float* sketch_step;      // (num_out,)
  std::int64_t num_out, num_in;  // num_out at least 1
};

// ids (num_rows,) of x (num_rows, num_in): for each row of x the lowest index of the largest of what quantized_linear
// gives, or of the first NaN. Neither the other rows nor the number of threads have an influence. with_row_sums: calls
// what it is given with the sums of the weight's rows; used only where all of the table has to be read. May throw
// std::bad_alloc.
using UseRowSums = std::function<void(const std::int32_t*)>;
void greedy_head(const float* x, std::int64_t num_rows, const GreedyTable& table,
                 const std::function<void(const UseRowSums&)>& with_row_sums, std::int64_t* ids,
                 const Parallel& parallel);

}  // namespace nanovllm
