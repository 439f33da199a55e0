// What the instruction sets' products share. Inlined into functions that are compiled for one of them.
#pragma once

#include <cmath>
#include <cstring>

#include "row_product.h"

namespace nanovllm {

constexpr float kRound = 12582912.0f;  // 1.5 * 2 ** 23: adding it rounds halves to even into the low bits of the mantissa

static inline __attribute__((always_inline)) std::int32_t bits_of(float x) {
  std::int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

static inline __attribute__((always_inline)) std::int32_t magnitude_bits(float x) { return bits_of(x) & 0x7fffffff; }

// At most kRowStep numbers of a row. Division is slow, so the numbers are multiplied by 1 / scale, which is at most
// 2e-5 off here; where that brings one so near to a half that it might be rounded to the other side, all are divided.
static inline __attribute__((always_inline)) void quantize_step(const float* x, std::size_t n, float scale,
                                                                float inverse, std::uint8_t* row) {
  std::int32_t farthest = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const float scaled = x[i] * inverse, rounded = scaled + kRound;
    const std::int32_t distance = magnitude_bits(scaled - (rounded - kRound));
    farthest = distance > farthest ? distance : farthest;
    row[i] = static_cast<std::uint8_t>(bits_of(rounded) + kZero);
  }
  if (farthest < bits_of(0.4999f)) return;
  for (std::size_t i = 0; i < n; ++i) row[i] = static_cast<std::uint8_t>(bits_of(x[i] / scale + kRound) + kZero);
}

// The contract's quantization. Written so that compilers make vectors of it: largest numbers are found among patterns
// of bits.
static inline __attribute__((always_inline)) float quantize_row(const float* x, std::size_t n, std::uint8_t* row) {
  std::int32_t largest_bits = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const std::int32_t bits = magnitude_bits(x[i]);
    largest_bits = bits > largest_bits ? bits : largest_bits;
  }
  float largest;
  std::memcpy(&largest, &largest_bits, sizeof largest);
  const float scale = (largest > 1e-30f ? largest : 1e-30f) * static_cast<float>(1.0 / 127), inverse = 1 / scale;
  std::size_t i = 0;
  for (; i + kRowStep <= n; i += kRowStep) quantize_step(x + i, kRowStep, scale, inverse, row + i);
  quantize_step(x + i, n - i, scale, inverse, row + i);
  return scale;
}

// export/fused_linear.py's RMS norm. A square of a float is exact as a double, so only the order of the sums, 16 of
// them side by side, decides about the result.
static inline __attribute__((always_inline)) void normalize_row(const float* x, const float* gain, std::size_t n,
                                                                float epsilon, float* output) {
  constexpr std::size_t kSums = 16;
  double sums[kSums] = {};
  std::size_t i = 0;
  for (; i + kSums <= n; i += kSums)
    for (std::size_t j = 0; j < kSums; ++j) sums[j] += static_cast<double>(x[i + j]) * static_cast<double>(x[i + j]);
  for (std::size_t j = 0; i + j < n; ++j) sums[j] += static_cast<double>(x[i + j]) * static_cast<double>(x[i + j]);
  for (std::size_t half = kSums / 2; half > 0; half /= 2)
    for (std::size_t j = 0; j < half; ++j) sums[j] += sums[j + half];
  const auto factor = static_cast<float>(1 / std::sqrt(sums[0] / static_cast<double>(n) + static_cast<double>(epsilon)));
  for (i = 0; i < n; ++i) output[i] = x[i] * factor * gain[i];
}

// An output from its sum over the row around kZero, modulo 2 ** 32.
static inline float finish(const Product& product, std::size_t row, std::size_t output, std::uint32_t sum) {
  sum -= static_cast<std::uint32_t>(kZero) * static_cast<std::uint32_t>(product.weight_row_sums[output]);
  float result =
      static_cast<float>(static_cast<std::int32_t>(sum)) * product.weight_scale[output] * product.row_scale[row];
  if (product.bias != nullptr) result += product.bias[output];
  if (product.residual != nullptr) result += product.residual[row * product.num_out + output];
  return result;
}

}  // namespace nanovllm
