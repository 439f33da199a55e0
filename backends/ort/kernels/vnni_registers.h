// What the products for AVX-512 with VNNI share: its vpdpbusd adds four products of uint8 by int8 to each of 16 sums of
// 32 bits, which wrap around. Only for sources that run behind a check of the processor.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // in GCC's own header
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define NANOVLLM_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#define NANOVLLM_INLINE NANOVLLM_TARGET static inline __attribute__((always_inline))
#define NANOVLLM_UNROLL _Pragma("GCC unroll 16")  // wholly: only then are arrays of vectors kept in registers

namespace nanovllm {

NANOVLLM_INLINE __mmask64 first_lanes(std::size_t count) {
  return count < 64 ? (__mmask64{1} << count) - 1 : ~__mmask64{0};
}

// Asks for weights that are read later, so that they come from memory while others are multiplied. Processors foresee
// that by themselves only where one row is read after the other. Past the end of the weights nothing is fetched.
template <_mm_hint kLevel>
NANOVLLM_INLINE void prefetch(const void* weight, std::size_t ahead) {
  _mm_prefetch(reinterpret_cast<const char*>(reinterpret_cast<std::uintptr_t>(weight) + ahead), kLevel);
}

// The totals of four vectors, in order.
NANOVLLM_INLINE __m128i totals(const __m512i* x) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpackhi_epi32(x[0], x[1]));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(x[2], x[3]), _mm512_unpackhi_epi32(x[2], x[3]));
  const __m512i abcd = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(abcd), _mm512_extracti64x4_epi64(abcd, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

// Transposes 16 x 16 groups of four bytes: x[i] group j becomes x[j] group i.
NANOVLLM_INLINE void transpose(__m512i* x) {
  __m512i y[16];
  NANOVLLM_UNROLL
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
  NANOVLLM_UNROLL
  for (int i = 0; i < 16; i += 4) {  // x[i + c]: group c of every 128 bits, of rows i .. i + 3
    x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
    x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
    x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
    x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
  }
  NANOVLLM_UNROLL
  for (int c = 0; c < 4; ++c) {  // then the 128-bit parts: 4 x 4 of them for each c
    const __m512i low01 = _mm512_shuffle_i32x4(x[c], x[4 + c], 0x44);
    const __m512i high01 = _mm512_shuffle_i32x4(x[c], x[4 + c], 0xee);
    const __m512i low23 = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0x44);
    const __m512i high23 = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0xee);
    y[c] = _mm512_shuffle_i32x4(low01, low23, 0x88);
    y[4 + c] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
    y[8 + c] = _mm512_shuffle_i32x4(high01, high23, 0x88);
    y[12 + c] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
  }
  NANOVLLM_UNROLL
  for (int i = 0; i < 16; ++i) x[i] = y[i];
}

}  // namespace nanovllm
#endif
