// The functions of row_product.h for AVX-512 with VNNI.
//
// Few rows: weights and rows are read along k, 64 at a time, and every pair of a row and an output has a register of 16
// partial sums, which are added up at the end. Many rows: that end costs a quarter of the time where k is 896, so
// weights are first packed, 64 outputs at a time, such that the 16 sums of a register are those of 16 outputs:
//
//     panel   k 0-3    outputs 0-15 | 16-31 | 32-47 | 48-63      four bytes of each
//             k 4-7    outputs 0-15 | ...

#if defined(__x86_64__)
#include "row_product_parts.h"
#include "vnni_registers.h"

namespace nanovllm {
namespace {

constexpr std::size_t kRows = 6;     // of a tile
constexpr std::size_t kOutputs = 4;  // of a tile read along k: 24 sums in 32 registers
constexpr std::size_t kVectors = kPanelOutputs / 16;
constexpr std::size_t kAhead = 8192;  // bytes: what comes from memory in the time that the first of them takes
constexpr std::size_t kPackFrom = 10;

NANOVLLM_TARGET float quantize(const float* x, std::size_t n, std::uint8_t* row) { return quantize_row(x, n, row); }

NANOVLLM_TARGET void normalize(const float* x, const float* gain, std::size_t n, float epsilon, float* output) {
  normalize_row(x, gain, n, epsilon, output);
}

// kNumRows rows by num_outputs <= kOutputs outputs, whose weights are read in one of two orders: an output after the
// other, which streams best, or, where rows would be read again and again, all outputs together.
template <std::size_t kNumRows, bool kTogether>
NANOVLLM_TARGET void tile(const Product& product, std::size_t row, std::size_t output, std::size_t num_outputs) {
  const std::uint8_t* rows = product.rows + row * product.stride;
  const std::int8_t* weight[kOutputs];
  __m512i sums[kNumRows][kOutputs];
  NANOVLLM_UNROLL
  for (std::size_t n = 0; n < kOutputs; ++n) {  // outputs that are not there repeat the first
    weight[n] = product.weight + (output + (n < num_outputs ? n : 0)) * product.num_in;
    NANOVLLM_UNROLL
    for (std::size_t t = 0; t < kNumRows; ++t) sums[t][n] = _mm512_setzero_si512();
  }
  const auto add = [&](std::size_t k, std::size_t n, __m512i w) NANOVLLM_TARGET __attribute__((always_inline)) {
    NANOVLLM_UNROLL
    for (std::size_t t = 0; t < kNumRows; ++t)
      sums[t][n] = _mm512_dpbusd_epi32(sums[t][n], _mm512_loadu_si512(rows + t * product.stride + k), w);
  };
  const std::size_t whole = product.num_in / kRowStep * kRowStep;
  if constexpr (kTogether) {
    // The next tiles: line by line where a tile is short, else each row of weights in step with the present one.
    const std::size_t tile_bytes = kOutputs * product.num_in, ahead = (kAhead / (tile_bytes + 1) + 1) * tile_bytes;
    const bool short_rows = tile_bytes < kAhead;
    const std::size_t next_row = short_rows ? kRowStep : product.num_in, next_k = short_rows ? kOutputs : 1;
    for (std::size_t k = 0; k < whole; k += kRowStep) {
      __m512i w[kOutputs];
      NANOVLLM_UNROLL
      for (std::size_t n = 0; n < kOutputs; ++n) {
        w[n] = _mm512_loadu_si512(weight[n] + k);
        prefetch<_MM_HINT_T0>(weight[0], ahead + n * next_row + k * next_k);
      }
      NANOVLLM_UNROLL
      for (std::size_t t = 0; t < kNumRows; ++t) {
        const __m512i x = _mm512_loadu_si512(rows + t * product.stride + k);
        NANOVLLM_UNROLL
        for (std::size_t n = 0; n < kOutputs; ++n) sums[t][n] = _mm512_dpbusd_epi32(sums[t][n], x, w[n]);
      }
    }
  }
  NANOVLLM_UNROLL
  for (std::size_t n = 0; n < kOutputs; ++n) {
    if constexpr (!kTogether)
      for (std::size_t k = 0; k < whole; k += kRowStep) add(k, n, _mm512_loadu_si512(weight[n] + k));
    const __mmask64 rest = first_lanes(product.num_in - whole);
    if (rest != 0) add(whole, n, _mm512_maskz_loadu_epi8(rest, weight[n] + whole));
  }

  const auto there = static_cast<__mmask8>((1u << num_outputs) - 1);
  const __m128i row_sums = _mm_maskz_loadu_epi32(there, product.weight_row_sums + output);
  const __m128 weight_scale = _mm_maskz_loadu_ps(there, product.weight_scale + output);
  NANOVLLM_UNROLL
  for (std::size_t t = 0; t < kNumRows; ++t) {
    const __m128 sum = _mm_cvtepi32_ps(_mm_sub_epi32(totals(sums[t]), _mm_slli_epi32(row_sums, 7)));
    const std::size_t place = (row + t) * product.num_out + output;
    __m128 result = _mm_mul_ps(_mm_mul_ps(sum, weight_scale), _mm_set1_ps(product.row_scale[row + t]));
    if (product.bias != nullptr) result = _mm_add_ps(result, _mm_maskz_loadu_ps(there, product.bias + output));
    if (product.residual != nullptr) result = _mm_add_ps(result, _mm_maskz_loadu_ps(there, product.residual + place));
    _mm_mask_storeu_ps(product.output + place, there, result);
  }
}

// How many rows each tile gets: as few tiles as possible, all alike.
std::size_t rows_per_tile(std::size_t num_rows) {
  const std::size_t num_tiles = (num_rows + kRows - 1) / kRows;
  return (num_rows + num_tiles - 1) / num_tiles;
}

void multiply(const Product& product, Span outputs) {
  constexpr decltype(&tile<1, false>) kTiles[kRows] = {tile<1, false>, tile<2, false>, tile<3, true>,
                                                       tile<4, true>,  tile<5, true>,  tile<6, true>};
  const std::size_t step = rows_per_tile(product.num_rows);
  for (std::size_t output = outputs.begin; output < outputs.end; output += kOutputs) {
    const std::size_t num_outputs = outputs.end - output < kOutputs ? outputs.end - output : kOutputs;
    for (std::size_t row = 0; row < product.num_rows; row += step) {
      const std::size_t num_rows = product.num_rows - row < step ? product.num_rows - row : step;
      kTiles[num_rows - 1](product, row, output, num_outputs);
    }
  }
}

// Outputs and k that are not there are zeros.
NANOVLLM_TARGET void pack(const Product& product, Span outputs, std::int8_t* panel) {
  for (std::size_t vector = 0; vector < kVectors; ++vector) {
    const std::size_t first = outputs.begin + vector * 16;
    for (std::size_t k = 0; k < product.num_in; k += kRowStep) {
      const __mmask64 rest = first_lanes(product.num_in - k);
      __m512i x[16];
      NANOVLLM_UNROLL
      for (std::size_t i = 0; i < 16; ++i) {
        const std::int8_t* weight = product.weight + (first + i) * product.num_in + k;
        x[i] = first + i < outputs.end ? _mm512_maskz_loadu_epi8(rest, weight) : _mm512_setzero_si512();
        prefetch<_MM_HINT_T1>(product.weight, (first + 16) * product.num_in + k * 16 + i * kRowStep);
      }
      transpose(x);
      NANOVLLM_UNROLL
      for (std::size_t i = 0; i < 16; ++i)
        _mm512_storeu_si512(panel + (k / 4 + i) * kPanelOutputs * 4 + vector * 64, x[i]);
    }
  }
}

// kNumRows rows by the outputs of a panel, 8 of k at a time. For each of these steps kLines lines of weights are asked
// for, from `ahead` on.
template <std::size_t kNumRows, std::size_t kLines>
NANOVLLM_TARGET void packed_tile(const Product& product, std::size_t row, Span outputs, const std::int8_t* panel,
                                 std::size_t ahead) {
  const std::uint8_t* rows = product.rows + row * product.stride;
  __m512i sums[kNumRows][kVectors];
  NANOVLLM_UNROLL
  for (std::size_t t = 0; t < kNumRows; ++t) {
    NANOVLLM_UNROLL
    for (std::size_t v = 0; v < kVectors; ++v) sums[t][v] = _mm512_setzero_si512();
  }
  for (std::size_t k = 0; k < product.num_in; k += 8, panel += 2 * kPanelOutputs * 4, ahead += kLines * 64) {
    NANOVLLM_UNROLL
    for (std::size_t line = 0; line < kLines; ++line) prefetch<_MM_HINT_T0>(product.weight, ahead + line * 64);
    NANOVLLM_UNROLL
    for (std::size_t part = 0; part < 2; ++part) {
      __m512i w[kVectors];
      NANOVLLM_UNROLL
      for (std::size_t v = 0; v < kVectors; ++v) w[v] = _mm512_loadu_si512(panel + part * kPanelOutputs * 4 + v * 64);
      NANOVLLM_UNROLL
      for (std::size_t t = 0; t < kNumRows; ++t) {
        std::int32_t four;
        std::memcpy(&four, rows + t * product.stride + k + part * 4, sizeof four);
        const __m512i x = _mm512_set1_epi32(four);
        NANOVLLM_UNROLL
        for (std::size_t v = 0; v < kVectors; ++v) sums[t][v] = _mm512_dpbusd_epi32(sums[t][v], x, w[v]);
      }
    }
  }
  NANOVLLM_UNROLL
  for (std::size_t v = 0; v < kVectors; ++v) {
    const std::size_t output = outputs.begin + v * 16;
    if (output >= outputs.end) break;
    const auto there = static_cast<__mmask16>(first_lanes(outputs.end - output));
    const __m512i row_sums = _mm512_maskz_loadu_epi32(there, product.weight_row_sums + output);
    const __m512 weight_scale = _mm512_maskz_loadu_ps(there, product.weight_scale + output);
    NANOVLLM_UNROLL
    for (std::size_t t = 0; t < kNumRows; ++t) {
      const __m512 sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[t][v], _mm512_slli_epi32(row_sums, 7)));
      const std::size_t place = (row + t) * product.num_out + output;
      __m512 result = _mm512_mul_ps(_mm512_mul_ps(sum, weight_scale), _mm512_set1_ps(product.row_scale[row + t]));
      if (product.bias != nullptr) result = _mm512_add_ps(result, _mm512_maskz_loadu_ps(there, product.bias + output));
      if (product.residual != nullptr)
        result = _mm512_add_ps(result, _mm512_maskz_loadu_ps(there, product.residual + place));
      _mm512_mask_storeu_ps(product.output + place, there, result);
    }
  }
}

template <std::size_t kLines>
constexpr decltype(&packed_tile<1, kLines>) kPackedTiles[kRows] = {
    packed_tile<1, kLines>, packed_tile<2, kLines>, packed_tile<3, kLines>,
    packed_tile<4, kLines>, packed_tile<5, kLines>, packed_tile<6, kLines>};

// The weights of the panel after this one, 8 lines for each step of a tile, are asked for all along the tiles: at once
// they would keep the first of them waiting.
void multiply_packed(const Product& product, Span outputs, Span rows, std::int8_t* panel) {
  pack(product, outputs, panel);
  const std::size_t num_rows = rows.end - rows.begin, step = rows_per_tile(num_rows);
  const std::size_t num_tiles = num_parts(num_rows, step);
  const std::size_t lines = num_tiles >= 8 ? 1 : num_tiles >= 4 ? 2 : num_tiles >= 2 ? 4 : 8;
  const auto* fetching = lines == 1   ? kPackedTiles<1>
                         : lines == 2 ? kPackedTiles<2>
                         : lines == 4 ? kPackedTiles<4>
                                      : kPackedTiles<8>;
  std::size_t ahead = outputs.end * product.num_in;
  const std::size_t end = ahead + kPanelOutputs * product.num_in;
  for (std::size_t tile = 0; tile < num_tiles; ++tile, ahead += num_parts(product.num_in, 8) * lines * 64) {
    const Span tile_rows = part(num_rows, step, tile);
    const auto* tiles = ahead < end ? fetching : kPackedTiles<0>;
    tiles[tile_rows.end - tile_rows.begin - 1](product, rows.begin + tile_rows.begin, outputs, panel, ahead);
  }
}

constexpr ProductFunctions kFunctions{quantize, multiply, multiply_packed, kPackFrom, normalize};

}  // namespace

const ProductFunctions& vnni_product_functions() { return kFunctions; }

}  // namespace nanovllm
#endif
