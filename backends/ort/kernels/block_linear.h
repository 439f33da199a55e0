// `nanovllm::BlockLinear_v1` and its fused forms (contracts: export/block_linear.py, export/fused_linear.py) on the host's
// threads, bit for bit.
#pragma once

#include <cstdint>

#include "parallel.h"
#include "row_source.h"

namespace nanovllm {

// A layer's weights as they lie in memory; no copy of them is kept.
struct BlockWeights {
  const std::uint8_t* integers;  // (num_out, num_blocks, 128 * bits / 8)
  const float* scales;           // (num_out, num_blocks)
  const float* bias;             // (num_out,), or null
  std::int64_t num_out, num_in;  // num_blocks is num_in / 128, rounded up
  int bits;                      // 4 or 8
};

// output (num_rows, num_out) of num_rows rows, row after row, apart from all others; residual: as output, added to it, or
// null. Any size, 0 too. A row's result depends on nothing but the row; that of gated_silu on the instruction set, too.
// May throw std::bad_alloc, also in a task.
void block_linear(const RowInput& input, std::int64_t num_rows, const BlockWeights& weights, const float* residual,
                  float* output, const Parallel& parallel);

}  // namespace nanovllm
