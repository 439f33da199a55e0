// `nanovllm::BlockLinear_v1` (contract: export/block_linear.py) on the host's threads, bit for bit.
#pragma once

#include <cstdint>

#include "parallel.h"

namespace nanovllm {

// A layer's weights as they lie in memory; no copy of them is kept.
struct BlockWeights {
  const std::uint8_t* integers;  // (num_out, num_blocks, 128 * bits / 8)
  const float* scales;           // (num_out, num_blocks)
  const float* bias;             // (num_out,), or null
  std::int64_t num_out, num_in;  // num_blocks is num_in / 128, rounded up
  int bits;                      // 4 or 8
};

// output (num_rows, num_out) of x (num_rows, num_in), row after row. Any size, 0 too. A row's result depends on nothing
// but the row, and not on the instruction set either. May throw std::bad_alloc, also in a task.
void block_linear(const float* x, std::int64_t num_rows, const BlockWeights& weights, float* output,
                  const Parallel& parallel);

}  // namespace nanovllm
