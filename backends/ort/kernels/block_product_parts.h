// What the instruction sets' block products share. Inlined into functions that are compiled for one of them.
#pragma once

#include <cstring>

#include "block_product.h"

namespace nanovllm {

template <int kBits>
constexpr std::size_t kBlockBytes = kBlock * kBits / 8;

template <int kBits>
constexpr int kZeroPoint = 1 << (kBits - 1);

// Where number k of a block lies in a quantized row. Two weights of 4 bits share a byte, so those in the low halves of
// a block's bytes are multiplied first, then those in the high halves.
template <int kBits>
constexpr std::size_t place_of(std::size_t k) {
  return kBits == 8 ? k : k / 2 + k % 2 * (kBlock / 2);
}

// One block of the contract's quantization. Written so that compilers make vectors of it: the largest magnitude is
// found among bit patterns, and adding 1.5 * 2 ** 23 rounds halves to even into the low bits of the mantissa.
template <int kBits>
static inline __attribute__((always_inline)) void quantize_block(const float* x, std::int8_t* row, float& scale,
                                                                 std::int32_t& offset) {
  std::int32_t largest_bits = 0;
  for (std::size_t k = 0; k < kBlock; ++k) {
    std::int32_t bits;
    std::memcpy(&bits, x + k, sizeof bits);
    bits &= 0x7fffffff;
    largest_bits = bits > largest_bits ? bits : largest_bits;
  }
  float largest;
  std::memcpy(&largest, &largest_bits, sizeof largest);
  scale = (largest > 1e-30f ? largest : 1e-30f) * static_cast<float>(1.0 / 127);
  std::int32_t numbers[kBlock], sum = 0;
  for (std::size_t k = 0; k < kBlock; ++k) {
    const float rounded = x[k] / scale + 12582912.0f;
    std::int32_t bits;
    std::memcpy(&bits, &rounded, sizeof bits);
    numbers[k] = static_cast<std::int8_t>(bits);
    sum += numbers[k];
  }
  constexpr std::size_t kParts = 8 / kBits;  // apart, so that each becomes vectors, too
  for (std::size_t first = 0; first < kParts; ++first)
    for (std::size_t k = first; k < kBlock; k += kParts)
      row[place_of<kBits>(k)] = static_cast<std::int8_t>(numbers[k]);
  offset = -kZeroPoint<kBits> * sum;
}

template <int kBits>
static inline __attribute__((always_inline)) void quantize_blocks(const float* x, std::size_t n, std::int8_t* row,
                                                                  float* scale, std::int32_t* offset) {
  for (; n >= kBlock; n -= kBlock, x += kBlock, row += kBlock) quantize_block<kBits>(x, row, *scale++, *offset++);
  if (n == 0) return;
  float padded[kBlock] = {};
  std::memcpy(padded, x, n * sizeof(float));
  quantize_block<kBits>(padded, row, *scale, *offset);
}

}  // namespace nanovllm
