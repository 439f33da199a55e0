// The functions of row_product.h for AVX-512 with VNNI.
//
// Weights in rows and few rows: both are read along k, 64 at a time, and every pair of a row and an output has a register
// of 16 partial sums, which are added up at the end. Weights in panels: the 16 sums of a register are those of 16 outputs,
// 4 panels at a time. For many rows, where that end would cost a quarter of the time, weights in rows are first packed
// into panels.

#if defined(__x86_64__)
#include "row_product_parts.h"
#include "vnni_registers.h"

namespace nanovllm {
namespace {

constexpr std::size_t kRows = 6;     // of a tile
constexpr std::size_t kOutputs = 4;  // of a tile read along k: 24 sums in 32 registers
constexpr std::size_t kPanels = kGroupOutputs / kPanelOutputs;
constexpr std::size_t kStepBytes = kPanelOutputs * kPanelInputs;  // of a panel: one vector
constexpr std::size_t kAhead = 8192;  // bytes: what comes from memory in the time that the first of them takes
constexpr std::size_t kPackFrom = 5;

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

// Packs at most kGroupOutputs rows of weights. Outputs and k that are not there are zeros.
NANOVLLM_TARGET void pack(const Product& product, Span outputs, std::int8_t* panels) {
  for (std::size_t first = outputs.begin; first < outputs.end; first += kPanelOutputs) {
    for (std::size_t k = 0; k < product.num_in; k += kRowStep, panels += kRowStep * kPanelOutputs) {
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
      for (std::size_t i = 0; i < 16; ++i) _mm512_storeu_si512(panels + i * kStepBytes, x[i]);
    }
  }
}

// Where a group's panels lie, and the weights that come after it, which are asked for meanwhile.
struct Group {
  Span outputs;
  const std::int8_t* panels;
  std::size_t panel_bytes;
  const std::int8_t* next;
};

// kNumRows rows by the outputs of a group, 8 of k at a time. For each of these steps kLines lines of the next group are
// asked for, from the byte `ahead` on: many of them into the second cache, because the first would not hold them.
template <std::size_t kNumRows, std::size_t kLines>
NANOVLLM_TARGET void panel_tile(const Product& product, std::size_t row, const Group& group, std::size_t ahead) {
  constexpr _mm_hint kLevel = kLines > 2 ? _MM_HINT_T1 : _MM_HINT_T0;
  const std::uint8_t* rows = product.rows + row * product.stride;
  const std::int8_t* panels[kPanels];
  __m512i sums[kNumRows][kPanels];
  NANOVLLM_UNROLL
  for (std::size_t v = 0; v < kPanels; ++v) {  // panels that are not there repeat the first
    const bool is_there = group.outputs.begin + v * kPanelOutputs < group.outputs.end;
    panels[v] = group.panels + (is_there ? v : 0) * group.panel_bytes;
    NANOVLLM_UNROLL
    for (std::size_t t = 0; t < kNumRows; ++t) sums[t][v] = _mm512_setzero_si512();
  }
  const auto add = [&](std::size_t k) NANOVLLM_TARGET __attribute__((always_inline)) {
    __m512i w[kPanels];
    NANOVLLM_UNROLL
    for (std::size_t v = 0; v < kPanels; ++v) w[v] = _mm512_loadu_si512(panels[v] + k * kPanelOutputs);
    NANOVLLM_UNROLL
    for (std::size_t t = 0; t < kNumRows; ++t) {
      std::int32_t four;
      std::memcpy(&four, rows + t * product.stride + k, sizeof four);
      const __m512i x = _mm512_set1_epi32(four);
      NANOVLLM_UNROLL
      for (std::size_t v = 0; v < kPanels; ++v) sums[t][v] = _mm512_dpbusd_epi32(sums[t][v], x, w[v]);
    }
  };
  std::size_t k = 0;
  for (; k + 2 * kPanelInputs <= product.num_in; k += 2 * kPanelInputs, ahead += kLines * 64) {
    NANOVLLM_UNROLL
    for (std::size_t line = 0; line < kLines; ++line) prefetch<kLevel>(group.next, ahead + line * 64);
    add(k);
    add(k + kPanelInputs);
  }
  for (; k < product.num_in; k += kPanelInputs) add(k);
  NANOVLLM_UNROLL
  for (std::size_t v = 0; v < kPanels; ++v) {
    const std::size_t output = group.outputs.begin + v * kPanelOutputs;
    if (output >= group.outputs.end) break;
    const auto there = static_cast<__mmask16>(first_lanes(group.outputs.end - output));
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
constexpr decltype(&panel_tile<1, kLines>) kPanelTiles[kRows] = {
    panel_tile<1, kLines>, panel_tile<2, kLines>, panel_tile<3, kLines>,
    panel_tile<4, kLines>, panel_tile<5, kLines>, panel_tile<6, kLines>};

// The next group, 8 lines for each step of a tile, is asked for all along the tiles: at once it would keep the first of
// them waiting.
void multiply_group(const Product& product, const Group& group, Span rows) {
  const std::size_t num_rows = rows.end - rows.begin, step = rows_per_tile(num_rows);
  const std::size_t num_tiles = num_parts(num_rows, step);
  const std::size_t lines = num_tiles >= 8 ? 1 : num_tiles >= 4 ? 2 : num_tiles >= 2 ? 4 : 8;
  const auto* fetching = lines == 1   ? kPanelTiles<1>
                         : lines == 2 ? kPanelTiles<2>
                         : lines == 4 ? kPanelTiles<4>
                                      : kPanelTiles<8>;
  const std::size_t end = kGroupOutputs * product.num_in;
  std::size_t ahead = 0;
  for (std::size_t tile = 0; tile < num_tiles; ++tile, ahead += num_parts(product.num_in, 8) * lines * 64) {
    const Span tile_rows = part(num_rows, step, tile);
    const auto* tiles = ahead < end ? fetching : kPanelTiles<0>;
    tiles[tile_rows.end - tile_rows.begin - 1](product, rows.begin + tile_rows.begin, group, ahead);
  }
}

void multiply_packed(const Product& product, Span outputs, Span rows, std::int8_t* panels) {
  pack(product, outputs, panels);
  const std::int8_t* next = product.weight + outputs.end * product.num_in;
  multiply_group(product, {outputs, panels, kPanelOutputs * product.stride, next}, rows);
}

void multiply_panels(const Product& product, Span outputs, Span rows) {
  const std::int8_t* panels = product.weight + outputs.begin * product.num_in;
  const std::int8_t* next = product.weight + outputs.end * product.num_in;
  multiply_group(product, {outputs, panels, kPanelOutputs * product.num_in, next}, rows);
}

constexpr ProductFunctions kFunctions{quantize, multiply, multiply_packed, kPackFrom, multiply_panels, normalize};

}  // namespace

const ProductFunctions& vnni_product_functions() { return kFunctions; }

}  // namespace nanovllm
#endif
