// The functions of block_product.h for AVX-512 with VNNI.
//
// Few rows: a tile of rows and four outputs goes along the blocks; the sums of a block are added up across registers
// and scaled. Many rows: weights are first packed, 64 outputs at a time, such that the 16 sums of a register are those
// of 16 outputs; group j of a block is numbers 4 j .. 4 j + 3 in the order of the quantized rows:
//
//     panel   block 0   group 0    outputs 0-15 | 16-31 | 32-47 | 48-63      four bytes of each
//                       group 1    outputs 0-15 | ...
//
// Both multiply weights as they are stored, that is above 0, and begin each sum with what that adds.

#if defined(__x86_64__)
#include "block_product_parts.h"
#include "vnni_registers.h"

namespace nanovllm {
namespace {

constexpr std::size_t kRows = 6;     // of a tile
constexpr std::size_t kOutputs = 4;  // of a tile of few rows: 24 sums in 32 registers
constexpr std::size_t kVectors = kBlockPanelOutputs / 16;
constexpr std::size_t kGroups = kBlock / 4;
constexpr std::size_t kGroupBytes = kBlockPanelOutputs * 4;
static_assert(kBlockPanelBytes == (kGroups + 1) * kGroupBytes, "a block's scales follow its weights");
constexpr std::size_t kAhead = 8192;  // bytes: what comes from memory in the time that the first of them takes
constexpr std::size_t kPackFrom = 10;

template <int kBits>
NANOVLLM_TARGET void quantize(const float* x, std::size_t n, std::int8_t* row, float* scale, std::int32_t* offset) {
  quantize_blocks<kBits>(x, n, row, scale, offset);
}

NANOVLLM_INLINE __m512i low_halves(__m512i x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
NANOVLLM_INLINE __m512i high_halves(__m512i x) { return low_halves(_mm512_srli_epi16(x, 4)); }

// The weights of a block in the order of the quantized rows.
template <int kBits>
NANOVLLM_INLINE void unpack(const std::uint8_t* block, __m512i& first, __m512i& second) {
  first = _mm512_loadu_si512(block);
  second = kBits == 8 ? _mm512_loadu_si512(block + 64) : high_halves(first);
  if (kBits == 4) first = low_halves(first);
}

// kNumRows rows by num_outputs <= kOutputs outputs. What is to be read kAhead bytes later is asked for.
template <int kBits, std::size_t kNumRows>
NANOVLLM_TARGET void tile(const BlockProduct& product, std::size_t row, std::size_t output, std::size_t num_outputs) {
  const std::size_t first = row * product.num_blocks, row_bytes = product.num_blocks * kBlockBytes<kBits>;
  const std::int8_t* rows = product.rows + first * kBlock;
  const std::size_t ahead = kAhead + kOutputs * row_bytes;  // a line is asked for kAhead bytes early, or more
  const std::uint8_t* weight = product.weight + output * row_bytes;
  const float* weight_scale = product.weight_scale + output * product.num_blocks;
  std::size_t present[kOutputs];  // outputs that are not there repeat the first
  for (std::size_t n = 0; n < kOutputs; ++n) present[n] = n < num_outputs ? n : 0;
  __m128 results[kNumRows];
  NANOVLLM_UNROLL
  for (std::size_t t = 0; t < kNumRows; ++t) results[t] = _mm_setzero_ps();
  for (std::size_t b = 0; b < product.num_blocks; ++b) {
    __m512i sums[kNumRows][kOutputs];
    NANOVLLM_UNROLL
    for (std::size_t n = 0; n < kOutputs; ++n) {
      __m512i w[2];
      unpack<kBits>(weight + present[n] * row_bytes + b * kBlockBytes<kBits>, w[0], w[1]);
      for (std::size_t line = 0; line < kBlockBytes<kBits>; line += 64)
        prefetch<_MM_HINT_T0>(weight, ahead + (b * kOutputs + n) * kBlockBytes<kBits> + line);
      NANOVLLM_UNROLL
      for (std::size_t t = 0; t < kNumRows; ++t) {
        const std::int8_t* x = rows + (t * product.num_blocks + b) * kBlock;
        sums[t][n] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w[0], _mm512_loadu_si512(x));
        sums[t][n] = _mm512_dpbusd_epi32(sums[t][n], w[1], _mm512_loadu_si512(x + 64));
      }
    }
    const float* s = weight_scale + b;
    const std::size_t step = product.num_blocks;
    const __m128 block_scale = _mm_setr_ps(s[0], s[present[1] * step], s[present[2] * step], s[present[3] * step]);
    NANOVLLM_UNROLL
    for (std::size_t t = 0; t < kNumRows; ++t) {
      const std::size_t at = first + t * product.num_blocks + b;
      const __m128i sum = _mm_add_epi32(totals(sums[t]), _mm_set1_epi32(product.row_offset[at]));
      const __m128 scale = _mm_mul_ps(block_scale, _mm_set1_ps(product.row_scale[at]));
      results[t] = _mm_add_ps(results[t], _mm_mul_ps(_mm_cvtepi32_ps(sum), scale));
    }
  }
  const auto there = static_cast<__mmask8>((1u << num_outputs) - 1);
  const __m128 bias =
      product.bias == nullptr ? _mm_setzero_ps() : _mm_maskz_loadu_ps(there, product.bias + output);
  NANOVLLM_UNROLL
  for (std::size_t t = 0; t < kNumRows; ++t) {
    const std::size_t place = (row + t) * product.num_out + output;
    __m128 result = _mm_add_ps(results[t], bias);
    if (product.residual != nullptr) result = _mm_add_ps(result, _mm_maskz_loadu_ps(there, product.residual + place));
    _mm_mask_storeu_ps(product.output + place, there, result);
  }
}

// How many rows each tile gets: as few tiles as possible, all alike.
std::size_t rows_per_tile(std::size_t num_rows) {
  const std::size_t num_tiles = num_parts(num_rows, kRows);
  return num_parts(num_rows, num_tiles);
}

template <int kBits>
void multiply(const BlockProduct& product, Span outputs) {
  constexpr decltype(&tile<kBits, 1>) kTiles[kRows] = {tile<kBits, 1>, tile<kBits, 2>, tile<kBits, 3>,
                                                       tile<kBits, 4>, tile<kBits, 5>, tile<kBits, 6>};
  const std::size_t step = rows_per_tile(product.num_rows);
  for (std::size_t output = outputs.begin; output < outputs.end; output += kOutputs) {
    const std::size_t num_outputs = std::min(kOutputs, outputs.end - output);
    for (std::size_t row = 0; row < product.num_rows; row += step)
      kTiles[std::min(step, product.num_rows - row) - 1](product, row, output, num_outputs);
  }
}

// 64 bytes of 16 outputs each, from offset on, transposed; outputs past the last one are zeros.
NANOVLLM_INLINE void load_transposed(const BlockProduct& product, Span outputs, std::size_t row_bytes,
                                     std::size_t offset, __m512i* x) {
  NANOVLLM_UNROLL
  for (std::size_t i = 0; i < 16; ++i) {
    const std::uint8_t* from = product.weight + (outputs.begin + i) * row_bytes + offset;
    x[i] = outputs.begin + i < outputs.end ? _mm512_loadu_si512(from) : _mm512_setzero_si512();
  }
  transpose(x);
}

// The first 16 outputs of a block into every kGroupBytes-th place.
template <int kBits>
NANOVLLM_TARGET void pack_block(const BlockProduct& product, Span outputs, std::size_t b, std::uint8_t* to) {
  constexpr std::size_t kHalf = kGroups / 2 * kGroupBytes;
  const std::size_t row_bytes = product.num_blocks * kBlockBytes<kBits>;
  __m512i x[16];
  load_transposed(product, outputs, row_bytes, b * kBlockBytes<kBits>, x);
  NANOVLLM_UNROLL
  for (std::size_t j = 0; j < 16; ++j) {
    _mm512_storeu_si512(to + j * kGroupBytes, kBits == 8 ? x[j] : low_halves(x[j]));
    if (kBits == 4) _mm512_storeu_si512(to + kHalf + j * kGroupBytes, high_halves(x[j]));
  }
  if (kBits == 4) return;
  load_transposed(product, outputs, row_bytes, b * kBlockBytes<kBits> + 64, x);
  NANOVLLM_UNROLL
  for (std::size_t j = 0; j < 16; ++j) _mm512_storeu_si512(to + kHalf + j * kGroupBytes, x[j]);
}

template <int kBits>
NANOVLLM_TARGET void pack(const BlockProduct& product, Span outputs, std::uint8_t* panel) {
  for (std::size_t first = outputs.begin; first < outputs.begin + kBlockPanelOutputs; first += 16) {
    const Span some{first, std::max(first, outputs.end)};
    for (std::size_t b = 0; b < product.num_blocks; ++b)
      pack_block<kBits>(product, some, b, panel + b * kBlockPanelBytes + (first - outputs.begin) * 4);
  }
  for (std::size_t n = 0; n < kBlockPanelOutputs; ++n) {
    const float* scale = product.weight_scale + (outputs.begin + n) * product.num_blocks;
    for (std::size_t b = 0; b < product.num_blocks; ++b) {
      const float value = outputs.begin + n < outputs.end ? scale[b] : 0.0f;
      std::memcpy(panel + b * kBlockPanelBytes + kGroups * kGroupBytes + n * sizeof value, &value, sizeof value);
    }
  }
}

using PanelSums = std::int32_t[kBlockPanelOutputs];
using PanelResults = float[kBlockPanelOutputs];

// sums[row][output] of kNumRows rows, one block of each, whose offsets are given, by the groups from panel to end.
// kLines: of weights, from the byte `ahead` on, to ask for meanwhile with each group. Not inlined, and with an end that
// is not known before, because GCC else keeps the sums in memory.
template <std::size_t kNumRows, std::size_t kLines>
NANOVLLM_TARGET __attribute__((noinline)) void add_up(const std::int8_t* rows, std::size_t row_stride,
                                                      const std::int32_t* offsets, std::size_t offset_stride,
                                                      const std::uint8_t* panel, const std::uint8_t* end,
                                                      const std::uint8_t* weight, std::size_t ahead, PanelSums* to) {
  __m512i sums[kNumRows][kVectors];
  NANOVLLM_UNROLL
  for (std::size_t t = 0; t < kNumRows; ++t) {
    NANOVLLM_UNROLL
    for (std::size_t v = 0; v < kVectors; ++v) sums[t][v] = _mm512_set1_epi32(offsets[t * offset_stride]);
  }
  for (; panel < end; panel += kGroupBytes, rows += 4) {
    __m512i w[kVectors];
    NANOVLLM_UNROLL
    for (std::size_t v = 0; v < kVectors; ++v) {
      w[v] = _mm512_loadu_si512(panel + v * 64);
      if (v < kLines) prefetch<_MM_HINT_T1>(weight, ahead + v * 64);
    }
    ahead += kLines * 64;
    NANOVLLM_UNROLL
    for (std::size_t t = 0; t < kNumRows; ++t) {
      std::int32_t four;
      std::memcpy(&four, rows + t * row_stride, sizeof four);
      const __m512i x = _mm512_set1_epi32(four);
      NANOVLLM_UNROLL
      for (std::size_t v = 0; v < kVectors; ++v) sums[t][v] = _mm512_dpbusd_epi32(sums[t][v], w[v], x);
    }
  }
  NANOVLLM_UNROLL
  for (std::size_t t = 0; t < kNumRows; ++t) {
    NANOVLLM_UNROLL
    for (std::size_t v = 0; v < kVectors; ++v) _mm512_storeu_si512(to[t] + v * 16, sums[t][v]);
  }
}

// kNumRows rows by the outputs of a panel. kFetch: whether to ask for the weights of the panel after it meanwhile.
template <int kBits, std::size_t kNumRows, bool kFetch>
NANOVLLM_TARGET void packed_tile(const BlockProduct& product, std::size_t row, Span outputs,
                                 const std::uint8_t* panel) {
  constexpr std::size_t kLines = kFetch ? kBits / 2 : 0;
  const std::size_t stride = product.num_blocks, num_outputs = outputs.end - outputs.begin;
  std::size_t ahead = outputs.end * stride * kBlockBytes<kBits>;
  alignas(64) PanelResults results[kNumRows] = {};
  for (std::size_t b = 0; b < stride; ++b, panel += kBlockPanelBytes, ahead += kGroups * kLines * 64) {
    const std::size_t first = row * stride + b;
    const std::uint8_t* end = panel + kGroups * kGroupBytes;
    alignas(64) PanelSums sums[kNumRows];
    add_up<kNumRows, kLines>(product.rows + first * kBlock, stride * kBlock, product.row_offset + first, stride, panel,
                             end, product.weight, ahead, sums);
    for (std::size_t t = 0; t < kNumRows; ++t) {
      const __m512 row_scale = _mm512_set1_ps(product.row_scale[first + t * stride]);
      for (std::size_t v = 0; v < kBlockPanelOutputs; v += 16) {
        const __m512 scale = _mm512_mul_ps(_mm512_loadu_ps(end + v * sizeof(float)), row_scale);
        const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(sums[t] + v)), scale);
        _mm512_storeu_ps(results[t] + v, _mm512_add_ps(_mm512_loadu_ps(results[t] + v), scaled));
      }
    }
  }
  for (std::size_t v = 0; v < num_outputs; v += 16) {
    const std::size_t output = outputs.begin + v;
    const auto there = static_cast<__mmask16>(first_lanes(num_outputs - v));
    const __m512 bias =
        product.bias == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(there, product.bias + output);
    for (std::size_t t = 0; t < kNumRows; ++t) {
      const std::size_t place = (row + t) * product.num_out + output;
      __m512 result = _mm512_add_ps(_mm512_loadu_ps(results[t] + v), bias);
      if (product.residual != nullptr)
        result = _mm512_add_ps(result, _mm512_maskz_loadu_ps(there, product.residual + place));
      _mm512_mask_storeu_ps(product.output + place, there, result);
    }
  }
}

template <int kBits, bool kFetch>
constexpr decltype(&packed_tile<kBits, 1, kFetch>) kPackedTiles[kRows] = {
    packed_tile<kBits, 1, kFetch>, packed_tile<kBits, 2, kFetch>, packed_tile<kBits, 3, kFetch>,
    packed_tile<kBits, 4, kFetch>, packed_tile<kBits, 5, kFetch>, packed_tile<kBits, 6, kFetch>};

template <int kBits>
void multiply_packed(const BlockProduct& product, Span outputs, Span rows, std::uint8_t* panel) {
  pack<kBits>(product, outputs, panel);
  const std::size_t step = rows_per_tile(rows.end - rows.begin);
  for (std::size_t row = rows.begin; row < rows.end; row += step) {
    const auto& tiles = row == rows.begin ? kPackedTiles<kBits, true> : kPackedTiles<kBits, false>;
    tiles[std::min(step, rows.end - row) - 1](product, row, outputs, panel);
  }
}

template <int kBits>
constexpr BlockFunctions kFunctions{quantize<kBits>, multiply<kBits>, multiply_packed<kBits>, kPackFrom};

}  // namespace

const BlockFunctions& vnni_block_functions(int bits) { return bits == 4 ? kFunctions<4> : kFunctions<8>; }

}  // namespace nanovllm
#endif
