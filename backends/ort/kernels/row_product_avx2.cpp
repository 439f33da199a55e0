// The functions of row_product.h for AVX2. Its product of uint8 by int8 (vpmaddubsw) adds two products up in 16 bits,
// where they saturate. Read along k, both are therefore widened to 16 bits; in panels, magnitudes of the row are multiplied
// by weights that take over its signs: two products of numbers up to 128 and 127 fit into 16 bits.

#if defined(__x86_64__)
#include <immintrin.h>

#include "row_product_parts.h"

#define NANOVLLM_TARGET __attribute__((target("avx2,fma")))

namespace nanovllm {
namespace {

constexpr std::size_t kStep = 16;     // bytes
constexpr std::size_t kRows = 4;      // and outputs of a tile: 8 sums in 16 registers
constexpr std::size_t kOutputs = 2;

NANOVLLM_TARGET float quantize(const float* x, std::size_t n, std::uint8_t* row) { return quantize_row(x, n, row); }

NANOVLLM_TARGET void normalize(const float* x, const float* gain, std::size_t n, float epsilon, float* output) {
  normalize_row(x, gain, n, epsilon, output);
}

NANOVLLM_TARGET inline std::uint32_t total(__m256i x) {
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
  return static_cast<std::uint32_t>(_mm_cvtsi128_si32(sum));
}

template <std::size_t kNumRows, std::size_t kNumOutputs>
NANOVLLM_TARGET void tile(const Product& product, std::size_t row, std::size_t output) {
  const std::uint8_t* rows = product.rows + row * product.stride;
  const std::int8_t* weight = product.weight + output * product.num_in;
  __m256i sums[kNumRows][kNumOutputs] = {};
  const auto add = [&](std::size_t k, const std::int8_t* w, std::size_t w_stride)
                       NANOVLLM_TARGET __attribute__((always_inline)) {
    __m256i wide[kNumOutputs];
    for (std::size_t n = 0; n < kNumOutputs; ++n)
      wide[n] = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w + n * w_stride)));
    for (std::size_t t = 0; t < kNumRows; ++t) {
      const auto* from = reinterpret_cast<const __m128i*>(rows + t * product.stride + k);
      const __m256i x = _mm256_cvtepu8_epi16(_mm_loadu_si128(from));
      for (std::size_t n = 0; n < kNumOutputs; ++n)
        sums[t][n] = _mm256_add_epi32(sums[t][n], _mm256_madd_epi16(x, wide[n]));
    }
  };
  std::size_t k = 0;
  for (; k + kStep <= product.num_in; k += kStep) add(k, weight + k, product.num_in);
  if (k < product.num_in) {  // the rows are padded, the weights are not
    std::int8_t rest[kNumOutputs * kStep] = {};
    for (std::size_t n = 0; n < kNumOutputs; ++n)
      std::memcpy(rest + n * kStep, weight + n * product.num_in + k, product.num_in - k);
    add(k, rest, kStep);
  }
  for (std::size_t t = 0; t < kNumRows; ++t)
    for (std::size_t n = 0; n < kNumOutputs; ++n)
      product.output[(row + t) * product.num_out + output + n] =
          finish(product, row + t, output + n, total(sums[t][n]));
}

template <std::size_t kNumOutputs>
void tiles(const Product& product, std::size_t output) {
  std::size_t row = 0;
  for (; row + kRows <= product.num_rows; row += kRows) tile<kRows, kNumOutputs>(product, row, output);
  for (; row < product.num_rows; ++row) tile<1, kNumOutputs>(product, row, output);
}

void multiply(const Product& product, Span outputs) {
  std::size_t output = outputs.begin;
  for (; output + kOutputs <= outputs.end; output += kOutputs) tiles<kOutputs>(product, output);
  for (; output < outputs.end; ++output) tiles<1>(product, output);
}

constexpr std::size_t kHalves = 2;  // of a panel: a vector has 8 outputs

template <std::size_t kNumRows>
NANOVLLM_TARGET void panel_tile(const Product& product, std::size_t row, std::size_t output) {
  const std::uint8_t* rows = product.rows + row * product.stride;
  const auto* weight = reinterpret_cast<const __m256i*>(product.weight + output * product.num_in);
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sums[kNumRows][kHalves] = {};
  for (std::size_t k = 0; k < product.num_in; k += kPanelInputs, weight += kHalves) {
    const __m256i w[kHalves] = {_mm256_loadu_si256(weight), _mm256_loadu_si256(weight + 1)};
    for (std::size_t t = 0; t < kNumRows; ++t) {
      std::uint32_t four;
      std::memcpy(&four, rows + t * product.stride + k, sizeof four);
      const __m256i x = _mm256_set1_epi32(static_cast<int>(four ^ 0x80808080u)), magnitude = _mm256_abs_epi8(x);
      for (std::size_t v = 0; v < kHalves; ++v) {
        const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(w[v], x));
        sums[t][v] = _mm256_add_epi32(sums[t][v], _mm256_madd_epi16(pairs, ones));
      }
    }
  }
  for (std::size_t t = 0; t < kNumRows; ++t) {
    std::uint32_t centred[kPanelOutputs];  // finish() takes off what a row around kZero would have added
    for (std::size_t v = 0; v < kHalves; ++v)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(centred) + v, sums[t][v]);
    for (std::size_t n = 0; n < kPanelOutputs; ++n) {
      const auto added = static_cast<std::uint32_t>(kZero) * static_cast<std::uint32_t>(product.weight_row_sums[output + n]);
      product.output[(row + t) * product.num_out + output + n] =
          finish(product, row + t, output + n, centred[n] + added);
    }
  }
}

void multiply_panels(const Product& product, Span outputs, Span rows) {
  for (std::size_t output = outputs.begin; output < outputs.end; output += kPanelOutputs) {
    std::size_t row = rows.begin;
    for (; row + kRows <= rows.end; row += kRows) panel_tile<kRows>(product, row, output);
    for (; row < rows.end; ++row) panel_tile<1>(product, row, output);
  }
}

constexpr ProductFunctions kFunctions{quantize, multiply, nullptr, 0, multiply_panels, normalize};

}  // namespace

const ProductFunctions& avx2_product_functions() { return kFunctions; }

}  // namespace nanovllm
#endif
