// One row of GatedSilu_v1, for the instruction set that the including file is compiled for.
#pragma once

#include "gated_silu.h"
#include "simd.h"

namespace {

// x * sigmoid(x). The exponential is taken of a number that is not positive, so that it never overflows.
inline __attribute__((always_inline)) Vec silu(Vec x) {
  const Vec size = larger(x, -x);
  const Vec power = exp2_of_negative(size * all(-1.44269504f));  // e ** -|x|
  const Vec one = all(1.0f);
  return x * ((x < Vec{} ? power : one) / (one + power));
}

void gated_silu_row_of(const float* gate, const float* up, std::int64_t size, float* output) {
  std::int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth) store(output + i, silu(load(gate + i)) * load(up + i));
  if (i == size) return;
  const int rest = static_cast<int>(size - i);
  const Vec last = silu(load_part(gate + i, rest)) * load_part(up + i, rest);
  __builtin_memcpy(output + i, &last, static_cast<std::size_t>(rest) * sizeof(float));
}

}  // namespace
