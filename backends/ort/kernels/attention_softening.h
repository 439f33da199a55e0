// Scores of a row with the keys of one step turned into integer weights for their values, for AVX-512.
#pragma once

#include "attention_keys.h"
#include "attention_states.h"
#include "simd.h"
#include "vnni_registers.h"

namespace {

// largest: of the scores. sum: of the weights 2 ** (score - largest), spread over a vector. unit: what one of the
// integers stands for.
struct Softened {
  __m512 sum;
  float largest, unit;
};

// 2 ** x for x <= 0 within 3e-6 of the result; NaN stays NaN.
inline __m512 coarse_exp2(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF);  // x - floor(x)
  __m512 p = _mm512_set1_ps(0.0134266898f);  // 2 ** f, fitted to the least largest relative error, and 1 at 0
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.0522424652f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.241280209f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.693044844f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, x);  // p * 2 ** floor(x)
}

// For the rows of one KV head of a tile, and one step.
class Weigher {
 public:
  // value_scales: (kStep,), of the keys that a row sees; whole: whether that may be all of them.
  Weigher(const float* value_scales, float softcap, bool whole) : value_scales_(value_scales), softcap_(softcap) {
    if (whole) whole_ = scaling({0, kStep});
  }

  // Requires that the row sees a key. scores: (kStep,), in powers of two, or over softcap; what is not seen may hold
  // anything. weights: (kStep,) receives the integers, 0 where a key is not seen.
  Softened soften(float* scores, Visible seen, std::int16_t* weights) const {
    if (softcap_ > 0) {
      for (std::int64_t i = 0; i < kStep; i += kWidth) store(scores + i, capped(load(scores + i), softcap_));
    }
    const bool whole = seen.first <= 0 && seen.end == kStep;
    return whole ? soften<true>(scores, seen, whole_, weights) : soften<false>(scores, seen, scaling(seen), weights);
  }

 private:
  struct Scaling {
    float up, unit;  // powers of two, one the other's inverse; up * the largest value scale is in [2 ** 14, 2 ** 15)
  };

  static __mmask16 seen_lanes(Visible seen, std::int64_t start) {
    const auto up_to = [&](std::int64_t n) { return (1u << lesser(greater(n - start, 0), 16)) - 1; };
    return static_cast<__mmask16>(up_to(seen.end) & ~up_to(seen.first));
  }

  Scaling scaling(Visible seen) const {
    __m512 most = _mm512_setzero_ps();
    for (std::int64_t i = 0; i < kStep; i += 16) {
      most = _mm512_max_ps(most, _mm512_maskz_loadu_ps(seen_lanes(seen, i), value_scales_ + i));
    }
    const float largest = _mm512_reduce_max_ps(most);
    std::uint32_t bits;
    __builtin_memcpy(&bits, &largest, sizeof bits);
    const auto power = [](std::uint32_t exponent) {
      const std::uint32_t bits = exponent << 23;
      float result;
      __builtin_memcpy(&result, &bits, sizeof result);
      return result;
    };
    // The exponent has 127 added to it; no scale that was written is below 2 ** -100.
    const std::uint32_t found = bits >> 23 & 0xff, exponent = found < 27 ? 27 : found;
    return {power(268 - exponent), power(exponent - 14)};
  }

  template <bool kWhole>
  Softened soften(const float* scores, Visible seen, Scaling scaling, std::int16_t* weights) const {
    constexpr int kVectors = kStep / 16;
    const __m512 hidden = _mm512_set1_ps(-__builtin_inff()), up = _mm512_set1_ps(scaling.up);
    __m512 x[kVectors], most = hidden;
    __mmask16 lanes[kVectors];
    NANOVLLM_UNROLL
    for (int i = 0; i < kVectors; ++i) {
      lanes[i] = kWhole ? __mmask16{0xffff} : seen_lanes(seen, i * 16);
      x[i] = _mm512_mask_loadu_ps(hidden, lanes[i], scores + i * 16);
      most = _mm512_max_ps(most, x[i]);
    }
    const float largest = _mm512_reduce_max_ps(most);
    const __m512 start = _mm512_set1_ps(largest);
    __m512 sum = _mm512_setzero_ps();
    NANOVLLM_UNROLL
    for (int i = 0; i < kVectors; ++i) {
      const __m512 weight = coarse_exp2(_mm512_sub_ps(x[i], start));
      const __m512 scale = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes[i], value_scales_ + i * 16), up);
      sum = _mm512_add_ps(sum, weight);
      const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(weight, scale));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + i * 16), _mm512_cvtsepi32_epi16(whole));
    }
    return {sum, largest, scaling.unit};
  }

  const float* value_scales_;
  float softcap_;
  Scaling whole_ = {};
};

}  // namespace
