// Products of rows of 8-bit integers, on one thread: one table of functions for each instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "instruction_set.h"
#include "parts.h"

namespace nanovllm {

constexpr std::size_t kRowStep = 64;       // quantized rows are padded to a multiple of it
constexpr std::size_t kPanelOutputs = 16;  // of a panel of weights, in which the numbers for kPanelInputs inputs of
constexpr std::size_t kPanelInputs = 4;    // all its outputs lie together (export/panel_linear.py)
constexpr std::size_t kGroupOutputs = 64;  // whose panels are multiplied together
constexpr std::size_t kPanelAlignment = 64;
constexpr int kZero = 128;                 // what stands for 0 in a quantized row

// How weights lie in memory: (num_out, num_in), or in panels, of which both sizes are multiples of a panel's.
enum class WeightOrder { rows, panels };

// A product in work: output[t, n] = (float(sum_k (row[t, k] - kZero) * weight[n, k]) * weight_scale[n]) * row_scale[t],
// to which, where they are there, bias[n] and then residual[t, n] are added.
struct Product {
  const std::uint8_t* rows;  // (num_rows, stride)
  const float* row_scale;
  std::size_t num_rows, stride;
  const std::int8_t* weight;  // in the order that the function wants
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

  // Some outputs of all rows. The weights lie in rows.
  void (*multiply)(const Product& product, Span outputs);

  // At most kGroupOutputs outputs of some rows, by way of a copy of the weights in panels; pays off from pack_from rows
  // on. The weights lie in rows. panels: memory for the copy, kGroupOutputs * product.stride bytes, best aligned to
  // kPanelAlignment. Null where there is no such way.
  void (*multiply_packed)(const Product& product, Span outputs, Span rows, std::int8_t* panels);
  std::size_t pack_from;

  // At most kGroupOutputs outputs, whole panels, of some rows. The weights lie in panels.
  void (*multiply_panels)(const Product& product, Span outputs, Span rows);

  // The RMS norm of a row of n numbers as export/fused_linear.py says it, the same bits in every instruction set.
  void (*normalize)(const float* x, const float* gain, std::size_t n, float epsilon, float* output);
};

const ProductFunctions& product_functions(InstructionSet set);

}  // namespace nanovllm
