// Features as pools keep them, read as vectors of floats; for one instruction set, that of the including file.
#pragma once

#include "attention_call.h"
#include "simd.h"

namespace {

using nanovllm::BFloat16;

typedef std::uint32_t UnsignedVec __attribute__((vector_size(kWidth * 4)));

// How many features of a pool fill 4 bytes.
template <typename T>
constexpr int kPack = static_cast<int>(4 / sizeof(T));

inline __attribute__((always_inline)) Vec load(const BFloat16* p) {
#if defined(__AVX512F__)
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
#elif defined(__AVX2__)
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
#else
  UnsignedVec bits;
  for (int i = 0; i < kWidth; ++i) bits[i] = std::uint32_t{p[i].bits} << 16;
  return reinterpret_cast<Vec>(bits);
#endif
}

inline __attribute__((always_inline)) Vec load(const std::int8_t* p) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  Vec v;
  for (int i = 0; i < kWidth; ++i) v[i] = p[i];
  return v;
#endif
}

// The first n lanes from memory, the others 0; reads nothing behind them.
template <typename T>
inline Vec load_part(const T* p, int n) {
  T features[kWidth] = {};
  __builtin_memcpy(features, p, static_cast<std::size_t>(n) * sizeof(T));
  return load(features);
}

// Feature `part` of the kPack that stand together in each 4 bytes, the first in the lowest.
template <typename T>
inline __attribute__((always_inline)) Vec unpack(Vec packed, int part);

template <>
inline __attribute__((always_inline)) Vec unpack<float>(Vec packed, int) {
  return packed;
}

template <>
inline __attribute__((always_inline)) Vec unpack<BFloat16>(Vec packed, int part) {
  const UnsignedVec bits = reinterpret_cast<UnsignedVec>(packed);
  return reinterpret_cast<Vec>(part == 0 ? bits << 16 : bits & 0xffff0000u);
}

template <>
inline __attribute__((always_inline)) Vec unpack<std::int8_t>(Vec packed, int part) {
  const UnsignedVec raised = reinterpret_cast<UnsignedVec>(packed) << (24 - 8 * part);
  return __builtin_convertvector(reinterpret_cast<IntVec>(raised) >> 24, Vec);
}

}  // namespace
