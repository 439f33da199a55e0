// The functions of block_product.h for AVX2. Its product of uint8 by int8 (vpmaddubsw) adds two products in 16 bits, so
// magnitudes of weights, at most 128, are multiplied by inputs that get their signs: at most 2 * 128 * 127.

#if defined(__x86_64__)
#include <immintrin.h>

#include "block_product_parts.h"

#define NANOVLLM_TARGET __attribute__((target("avx2,fma")))
#define NANOVLLM_INLINE NANOVLLM_TARGET static inline __attribute__((always_inline))

namespace nanovllm {
namespace {

constexpr std::size_t kRows = 4;  // of a tile, which has one output
constexpr std::size_t kBytes = 32;
constexpr std::size_t kVectors = kBlock / kBytes;

template <int kBits>
NANOVLLM_TARGET void quantize(const float* x, std::size_t n, std::int8_t* row, float* scale, std::int32_t* offset) {
  quantize_blocks<kBits>(x, n, row, scale, offset);
}

NANOVLLM_INLINE __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

NANOVLLM_INLINE std::int32_t total(__m256i x) {
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
  return _mm_cvtsi128_si32(sum);
}

// Vector i of a block's weights around 0, in the order of the quantized rows.
template <int kBits>
NANOVLLM_INLINE __m256i weights(const std::uint8_t* block, std::size_t i) {
  if constexpr (kBits == 8) return _mm256_xor_si256(load(block + i * kBytes), _mm256_set1_epi8(-128));
  const __m256i pairs = load(block + i % 2 * kBytes);
  const __m256i numbers = _mm256_and_si256(i < 2 ? pairs : _mm256_srli_epi16(pairs, 4), _mm256_set1_epi8(15));
  return _mm256_sub_epi8(numbers, _mm256_set1_epi8(kZeroPoint<4>));
}

template <int kBits, std::size_t kNumRows>
NANOVLLM_TARGET void tile(const BlockProduct& product, std::size_t row, std::size_t output) {
  const std::size_t first = row * product.num_blocks;
  const std::int8_t* rows = product.rows + first * kBlock;
  const float* weight_scale = product.weight_scale + output * product.num_blocks;
  float results[kNumRows] = {};
  for (std::size_t b = 0; b < product.num_blocks; ++b) {
    const std::uint8_t* block = product.weight + (output * product.num_blocks + b) * kBlockBytes<kBits>;
    __m256i sums[kNumRows] = {};
    for (std::size_t i = 0; i < kVectors; ++i) {
      const __m256i w = weights<kBits>(block, i), magnitudes = _mm256_abs_epi8(w);
      for (std::size_t t = 0; t < kNumRows; ++t) {
        const __m256i x = load(rows + (t * product.num_blocks + b) * kBlock + i * kBytes);
        const __m256i pairs = _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(x, w));
        sums[t] = _mm256_add_epi32(sums[t], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
      }
    }
    for (std::size_t t = 0; t < kNumRows; ++t) {
      const float scale = weight_scale[b] * product.row_scale[first + t * product.num_blocks + b];
      results[t] += static_cast<float>(total(sums[t])) * scale;
    }
  }
  const float bias = product.bias == nullptr ? 0.0f : product.bias[output];
  for (std::size_t t = 0; t < kNumRows; ++t) {
    const std::size_t place = (row + t) * product.num_out + output;
    const float residual = product.residual == nullptr ? 0.0f : product.residual[place];
    product.output[place] = results[t] + bias + residual;
  }
}

template <int kBits>
void multiply(const BlockProduct& product, Span outputs) {
  for (std::size_t output = outputs.begin; output < outputs.end; ++output) {
    std::size_t row = 0;
    for (; row + kRows <= product.num_rows; row += kRows) tile<kBits, kRows>(product, row, output);
    for (; row < product.num_rows; ++row) tile<kBits, 1>(product, row, output);
  }
}

template <int kBits>
constexpr BlockFunctions kFunctions{quantize<kBits>, multiply<kBits>, nullptr, 0};

}  // namespace

const BlockFunctions& avx2_block_functions(int bits) { return bits == 4 ? kFunctions<4> : kFunctions<8>; }

}  // namespace nanovllm
#endif
