// What the instruction sets' products share. Inlined into functions that are compiled for one of them.
#pragma once

#include <cstring>

#include "row_product.h"

namespace nanovllm {

// The contract's quantization. Written so that compilers make vectors of it: the largest magnitude is found among bit
// patterns, and adding 1.5 * 2 ** 23 rounds halves to even into the low bits of the mantissa.
static inline __attribute__((always_inline)) float quantize_row(const float* x, std::size_t n, std::uint8_t* row) {
  std::int32_t largest_bits = 0;
  for (std::size_t i = 0; i < n; ++i) {
    std::int32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    bits &= 0x7fffffff;
    largest_bits = bits > largest_bits ? bits : largest_bits;
  }
  float largest;
  std::memcpy(&largest, &largest_bits, sizeof largest);
  const float scale = (largest > 1e-30f ? largest : 1e-30f) * static_cast<float>(1.0 / 127);
  for (std::size_t i = 0; i < n; ++i) {
    const float rounded = x[i] / scale + 12582912.0f;
    std::int32_t bits;
    std::memcpy(&bits, &rounded, sizeof bits);
    row[i] = static_cast<std::uint8_t>(bits + kZero);
  }
  return scale;
}

// An output from its sum over the row around kZero, modulo 2 ** 32.
static inline float finish(const Product& product, std::size_t row, std::size_t output, std::uint32_t sum) {
  sum -= static_cast<std::uint32_t>(kZero) * static_cast<std::uint32_t>(product.weight_row_sums[output]);
  return static_cast<float>(static_cast<std::int32_t>(sum)) * product.weight_scale[output] * product.row_scale[row];
}

}  // namespace nanovllm
