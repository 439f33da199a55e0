// `nanovllm::QuantizedLinear_v1` (contract: export/quantized_linear.py) on the host's threads, bit for bit.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel.h"

namespace nanovllm {

// The sum of each of the rows of `weight` (num_out, num_in): a constant of the layer that quantized_linear needs.
std::vector<std::int32_t> weight_row_sums(const std::int8_t* weight, std::int64_t num_out, std::int64_t num_in,
                                          const Parallel& parallel);

// output (num_rows, num_out) of x (num_rows, num_in), weight (num_out, num_in) and weight_scale (num_out,), all row
// after row. Any size, 0 too; num_in at most 133,000. The weights are read as they lie: no copy of them is kept.
// A row's result depends on nothing but the row. May throw std::bad_alloc, also in a task.
void quantized_linear(const float* x, std::int64_t num_rows, std::int64_t num_in, const std::int8_t* weight,
                      const float* weight_scale, const std::int32_t* weight_row_sums, std::int64_t num_out,
                      float* output, const Parallel& parallel);

}  // namespace nanovllm
