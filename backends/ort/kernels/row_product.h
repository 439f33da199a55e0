// Products of rows of 8-bit integers, on one thread: one table of functions for each instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "instruction_set.h"
#include "parts.h"

namespace nanovllm {

constexpr std::size_t kRowStep = 64;       // quantized rows are padded to a multiple of it
constexpr std::size_t kPanelOutputs = 64;  // weight rows that are packed together
constexpr std::size_t kPanelAlignment = 64;
constexpr int kZero = 128;                 // what stands for 0 in a quantized row

// A product in work: output[t, n] = (float(sum_k (row[t, k] - kZero) * weight[n, k]) * weight_scale[n]) * row_scale[t],
// to which, where they are there, bias[n] and then residual[t, n] are added.
struct Product {
  const std::uint8_t* rows;  // (num_rows, stride)
  const float* row_scale;
  std::size_t num_rows, stride;
  const std::int8_t* weight;  // (num_out, num_in)
  const float* weight_scale;
  const std::int32_t* weight_row_sums;
  std::size_t num_in, num_out;
  float* output;                    // (num_rows, num_out)
  const float* bias = nullptr;      // (num_out,), or null
  const float* residual = nullptr;  // (num_rows, num_out), or null
};

struct ProductFunctions {
  // Quantizes a row of n numbers around kZero as the contract says, and returns its scale. Padding is left as it is.
  float (*quantize)(const float* x, std::size_t n, std::uint8_t* row);

  // Some outputs of all rows.
  void (*multiply)(const Product& product, Span outputs);

  // At most kPanelOutputs outputs of some rows, by way of a copy of the weights in the order in which the processor
  // wants them; pays off from pack_from rows on. panel: memory for it, kPanelOutputs * product.stride bytes, best
  // aligned to kPanelAlignment. Null where there is no such way.
  void (*multiply_packed)(const Product& product, Span outputs, Span rows, std::int8_t* panel);
  std::size_t pack_from;

  // The RMS norm of a row of n numbers as export/fused_linear.py says it, the same bits in every instruction set.
  void (*normalize)(const float* x, const float* gain, std::size_t n, float epsilon, float* output);
};

const ProductFunctions& product_functions(InstructionSet set);

}  // namespace nanovllm
