// Products of rows with blocks of 4 or 8 bits, on one thread: one table of functions for each instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "instruction_set.h"
#include "parts.h"

namespace nanovllm {

constexpr std::size_t kBlock = 128;             // numbers that share a scale
constexpr std::size_t kBlockPanelOutputs = 64;  // weight rows that are packed together
constexpr std::size_t kBlockPanelBytes = kBlockPanelOutputs * (kBlock + sizeof(float));  // of a block of them

// A product in work; see export/block_linear.py.
struct BlockProduct {
  const std::int8_t* rows;         // (num_rows, num_blocks, kBlock), each block in the order of place_of()
  const float* row_scale;          // (num_rows, num_blocks)
  const std::int32_t* row_offset;  // (num_rows, num_blocks): -(integer that stands for 0) * the block's sum
  std::size_t num_rows, num_blocks;
  const std::uint8_t* weight;  // (num_out, num_blocks, kBlock * bits / 8)
  const float* weight_scale;   // (num_out, num_blocks)
  const float* bias;           // (num_out,), or null
  std::size_t num_out;
  float* output;                    // (num_rows, num_out)
  const float* residual = nullptr;  // (num_rows, num_out), or null
};

struct BlockFunctions {
  // Quantizes a row of n numbers as the contract says, its last block padded with zeros.
  void (*quantize)(const float* x, std::size_t n, std::int8_t* row, float* scale, std::int32_t* offset);

  // Some outputs of all rows.
  void (*multiply)(const BlockProduct& product, Span outputs);

  // At most kBlockPanelOutputs outputs of some rows, by way of a copy of the weights, a byte each, in the order in
  // which the processor wants them, and of their scales; pays off from pack_from rows on. panel: memory for it,
  // num_blocks * kBlockPanelBytes. Null where there is no such way.
  void (*multiply_packed)(const BlockProduct& product, Span outputs, Span rows, std::uint8_t* panel);
  std::size_t pack_from;
};

// bits: 4 or 8.
const BlockFunctions& block_functions(InstructionSet set, int bits);

}  // namespace nanovllm
