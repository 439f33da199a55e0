// Vectors of floats for one instruction set, the one that the including file is compiled for.
//
// Everything has internal linkage: the same names mean other code in each file that includes this.
#pragma once

#include <cstdint>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#else
constexpr int kWidth = 8;  // without AVX the compiler makes two of each
#endif

typedef float Vec __attribute__((vector_size(kWidth * 4)));
typedef std::int32_t IntVec __attribute__((vector_size(kWidth * 4)));

inline __attribute__((always_inline)) Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

inline __attribute__((always_inline)) void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof v); }

// The first n lanes from memory, the others 0; reads nothing behind them.
inline Vec load_part(const float* p, int n) {
  Vec v = {};
  __builtin_memcpy(&v, p, static_cast<std::size_t>(n) * sizeof(float));
  return v;
}

inline __attribute__((always_inline)) Vec all(float x) {
#if defined(__AVX512F__)
  return _mm512_set1_ps(x);
#elif defined(__AVX2__)
  return _mm256_set1_ps(x);
#else
  return Vec{x, x, x, x, x, x, x, x};
#endif
}

// Asks for a cache line.
inline __attribute__((always_inline)) void prefetch(const float* p) { __builtin_prefetch(p, 0, 3); }

// a * b + c, rounded once where the processor can; one file never mixes the two.
inline __attribute__((always_inline)) Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

inline __attribute__((always_inline)) Vec larger(Vec a, Vec b) { return a > b ? a : b; }

inline float largest_lane(Vec v) {
  float result = v[0];
  for (int i = 1; i < kWidth; ++i) result = v[i] > result ? v[i] : result;
  return result;
}

inline float sum_lanes(Vec v) {
  float lanes[kWidth];
  store(lanes, v);
  for (int n = kWidth / 2; n > 0; n /= 2) {
    for (int i = 0; i < n; ++i) lanes[i] += lanes[i + n];
  }
  return lanes[0];
}

// 2 ** x within 1.2e-7 of the result, for x <= 0; 0 below 2 ** -126. Polynomial for 2 ** f, |f| <= 1 / 2, fitted to the
// least largest relative error (2e-9 before rounding).
inline __attribute__((always_inline)) Vec exp2_of_negative(Vec x) {
  const Vec shift = all(12582912.0f);  // 1.5 * 2 ** 23: adding it rounds to an integer
  const Vec whole = (x + shift) - shift;
  const Vec f = x - whole;
  Vec p = all(1.53533618e-4f);
  p = fma(p, f, all(1.33988744e-3f));
  p = fma(p, f, all(9.61843736e-3f));
  p = fma(p, f, all(5.55033247e-2f));
  p = fma(p, f, all(2.40226479e-1f));
  p = fma(p, f, all(6.93147203e-1f));
  p = fma(p, f, all(1.0f));
  const Vec lowest = all(-126.0f);
  const IntVec exponent = __builtin_convertvector(whole < lowest ? lowest : whole, IntVec);
  const Vec result = p * reinterpret_cast<Vec>((exponent + 127) << 23);
  return x < lowest ? Vec{} : result;
}

// rows[0 .. kWidth-1] to columns: out[i * stride + j] = rows[j][i] for i, j < kWidth.
inline __attribute__((always_inline)) void transpose(const float* const* rows, float* out, int stride) {
#if defined(__AVX512F__)
  __m512 r[16];
  for (int i = 0; i < 8; ++i) {  // halves of rows i and i + 4, of rows 8 + i and 12 + i
    const int row = i < 4 ? i : i + 4;
    const __m512 a = _mm512_loadu_ps(rows[row]);
    const __m512 b = _mm512_loadu_ps(rows[row + 4]);
    r[i] = _mm512_shuffle_f32x4(a, b, 0x44);
    r[i + 8] = _mm512_shuffle_f32x4(a, b, 0xEE);
  }
  __m512 s[16];
  for (int half = 0; half < 16; half += 8) {
    for (int i = 0; i < 4; ++i) {
      const __m512 a = r[half + i];
      const __m512 b = r[half + i + 4];
      s[half + i] = _mm512_shuffle_f32x4(a, b, 0x88);      // first quarters of rows i, i + 4, i + 8, i + 12
      s[half + i + 4] = _mm512_shuffle_f32x4(a, b, 0xDD);  // second quarters
    }
  }
  for (int quarter = 0; quarter < 16; quarter += 4) {
    const __m512 a = _mm512_unpacklo_ps(s[quarter], s[quarter + 1]);
    const __m512 b = _mm512_unpackhi_ps(s[quarter], s[quarter + 1]);
    const __m512 c = _mm512_unpacklo_ps(s[quarter + 2], s[quarter + 3]);
    const __m512 d = _mm512_unpackhi_ps(s[quarter + 2], s[quarter + 3]);
    const __m512d ac[2] = {_mm512_castps_pd(a), _mm512_castps_pd(c)};
    const __m512d bd[2] = {_mm512_castps_pd(b), _mm512_castps_pd(d)};
    float* column = out + quarter * stride;
    _mm512_storeu_ps(column, _mm512_castpd_ps(_mm512_unpacklo_pd(ac[0], ac[1])));
    _mm512_storeu_ps(column + stride, _mm512_castpd_ps(_mm512_unpackhi_pd(ac[0], ac[1])));
    _mm512_storeu_ps(column + 2 * stride, _mm512_castpd_ps(_mm512_unpacklo_pd(bd[0], bd[1])));
    _mm512_storeu_ps(column + 3 * stride, _mm512_castpd_ps(_mm512_unpackhi_pd(bd[0], bd[1])));
  }
#elif defined(__AVX2__)
  __m256 r[8];
  for (int i = 0; i < 4; ++i) {
    const __m256 a = _mm256_loadu_ps(rows[i]);
    const __m256 b = _mm256_loadu_ps(rows[i + 4]);
    r[i] = _mm256_permute2f128_ps(a, b, 0x20);
    r[i + 4] = _mm256_permute2f128_ps(a, b, 0x31);
  }
  for (int half = 0; half < 8; half += 4) {
    const __m256 a = _mm256_unpacklo_ps(r[half], r[half + 1]);
    const __m256 b = _mm256_unpackhi_ps(r[half], r[half + 1]);
    const __m256 c = _mm256_unpacklo_ps(r[half + 2], r[half + 3]);
    const __m256 d = _mm256_unpackhi_ps(r[half + 2], r[half + 3]);
    _mm256_storeu_ps(out + half * stride, _mm256_shuffle_ps(a, c, 0x44));
    _mm256_storeu_ps(out + (half + 1) * stride, _mm256_shuffle_ps(a, c, 0xEE));
    _mm256_storeu_ps(out + (half + 2) * stride, _mm256_shuffle_ps(b, d, 0x44));
    _mm256_storeu_ps(out + (half + 3) * stride, _mm256_shuffle_ps(b, d, 0xEE));
  }
#else
  for (int i = 0; i < kWidth; ++i) {
    for (int j = 0; j < kWidth; ++j) out[i * stride + j] = rows[j][i];
  }
#endif
}

}  // namespace
