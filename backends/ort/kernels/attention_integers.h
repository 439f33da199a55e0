// Attention of a tile over int8 pools in integers, for AVX-512 with VNNI. For each KV head and step of kStep keys:
//
//     keys   -> panel (groups of 32 keys, head size / 4, 32 keys), four features of a key side by side, plus 128
//     values -> panel (groups of 32 features, pairs of keys, 32 features), 16 bits, two keys of a feature side by side
//     and for some rows (queries x heads of the group) at a time, of those that see a key of the step:
//         queries (8 bits) x keys     ->  scores: exact sums, times the scales of query and key
//         scores of a row             ->  weights 2 ** (score - largest of the step), times the values' scales, 16 bits
//         weights x values            ->  exact sums, added to the states
//
// What may be rounded stands in the contract (export/paged_attention.py). Weights have 16 bits, not 8, because a
// sequence's first token often draws most of the weight and has a small value: in 8 bits all others would become 0. Sums
// of integers are exact, so they may be cut into tiles at will. The weight of a key that the row does not see is 0, and
// stale integers are finite, so they do no harm.
#pragma once

#include "attention_keys.h"
#include "attention_softening.h"
#include "attention_states.h"
#include "vnni_registers.h"

namespace {

constexpr int kRows = 8;             // of a product in registers, by 2 vectors
constexpr std::int64_t kGroup = 32;  // keys or features of 2 vectors

struct IntegerTile {
  const Keys& step;
  const PagedAttention& call;
  const std::int64_t rows, head_size;
  const std::int64_t quads;         // fours of features, the last filled up
  const std::int64_t query_stride;  // bytes from one query to the next
  const std::int64_t groups;        // of features
  std::int8_t* const queries;       // (KV heads, rows, query_stride), rotated, zeros behind head_size
  float* const query_scales;        // (KV heads, rows), from sums to scores in powers of two; or over softcap
  std::int32_t* const offsets;      // (KV heads, rows), what takes the keys' 128 off the sums
  std::uint8_t* const columns;      // the panel of keys
  std::int16_t* const values;       // the panel of values
  float* const features;            // (query_stride,)
  float* const scores;              // (kRows, kStep)
  std::int16_t* const weights;      // (kRows, kStep)
  float *const key_scales, *const value_scales;  // (kStep,) each

  IntegerTile(const Keys& step, Scratch& scratch)
      : step(step),
        call(step.call),
        rows(step.rows),
        head_size(call.head_size),
        quads((head_size + 3) / 4),
        query_stride(padded_head_size(call)),
        groups((head_size + kGroup - 1) / kGroup),
        queries(scratch.take<std::int8_t>(step.tile.num_kv_heads * rows * query_stride)),
        query_scales(scratch.take<float>(step.tile.num_kv_heads * rows)),
        offsets(scratch.take<std::int32_t>(step.tile.num_kv_heads * rows)),
        columns(scratch.take<std::uint8_t>(kStep * quads * 4)),
        values(scratch.take<std::int16_t>(kStep * groups * kGroup)),
        features(scratch.take<float>(query_stride)),
        scores(scratch.take<float>(kRows * kStep)),
        weights(scratch.take<std::int16_t>(kRows * kStep)),
        key_scales(scratch.take<float>(kStep)),
        value_scales(scratch.take<float>(kStep)) {}
};

// Keys first .. end - 1 of the step, and those that fill their groups, to columns.
inline void pack_keys(const IntegerTile& tile, const std::int8_t* keys) {
  const __m512i raised = _mm512_set1_epi8(-128);
  const std::int64_t* slots = tile.step.slots;
  for (std::int64_t key = tile.step.first / kGroup * kGroup; key < tile.step.end; key += 16) {
    std::uint8_t* const columns = tile.columns + key / kGroup * (tile.quads * kGroup * 4) + key % kGroup * 4;
    for (std::int64_t d = 0; d < tile.head_size; d += 64) {
      const __mmask64 there = nanovllm::first_lanes(static_cast<std::size_t>(tile.head_size - d));
      __m512i x[16];
      NANOVLLM_UNROLL
      for (int i = 0; i < 16; ++i) {
        x[i] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(there, keys + slots[key + i] + d), raised);
      }
      nanovllm::transpose(x);
      const std::int64_t quads = lesser(tile.quads - d / 4, 16);
      for (std::int64_t i = 0; i < quads; ++i) _mm512_storeu_si512(columns + (d / 4 + i) * kGroup * 4, x[i]);
    }
  }
}

// Values of the pairs that hold keys first .. end - 1 to the panel. Features of a group stand in the order in
// which unpacking leaves them: in_order() undoes it.
inline void pack_values(const IntegerTile& tile, const std::int8_t* values) {
  const std::int64_t* slots = tile.step.slots;
  for (std::int64_t d = 0; d < tile.head_size; d += kGroup) {
    const auto there = static_cast<__mmask32>(nanovllm::first_lanes(static_cast<std::size_t>(tile.head_size - d)));
    std::int16_t* const panel = tile.values + d * kStep;
    for (std::int64_t key = tile.step.first / 2 * 2; key < tile.step.end; key += 2) {
      const __m512i a = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(there, values + slots[key] + d));
      const __m512i b = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(there, values + slots[key + 1] + d));
      _mm512_storeu_si512(panel + key * kGroup, _mm512_unpacklo_epi16(a, b));
      _mm512_storeu_si512(panel + key * kGroup + kGroup, _mm512_unpackhi_epi16(a, b));
    }
  }
}

// The sums of features 0 .. 15 and 16 .. 31 of a group.
inline void in_order(__m512i& low, __m512i& high) {
  const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
  const __m512i a = _mm512_permutex2var_epi32(low, first, high), b = _mm512_permutex2var_epi32(low, second, high);
  low = a;
  high = b;
}

inline __m512i four_bytes(const void* p) {
  std::int32_t four;
  __builtin_memcpy(&four, p, sizeof four);
  return _mm512_set1_epi32(four);
}

// Where keys and values are that the next step will want; null where nobody has to ask for them. They are asked for a
// little at a time while others are multiplied: in bursts they would hold up what is read now.
struct Ahead {
  const std::int8_t *keys = nullptr, *values = nullptr;
};

// Scores of R rows, which start with row `row` of those of a KV head, with a group of keys.
template <int R>
void score_rows(const IntegerTile& tile, std::int64_t row, std::int64_t key, const std::int8_t* ahead) {
  const std::int8_t* query = tile.queries + row * tile.query_stride;
  const std::uint8_t* columns = tile.columns + key * tile.quads * 4;
  const std::int64_t* const next = tile.step.slots + kStep + key;
  __m512i low[R], high[R];
  NANOVLLM_UNROLL
  for (int r = 0; r < R; ++r) low[r] = high[r] = _mm512_set1_epi32(tile.offsets[row + r]);
  for (std::int64_t quad = 0; quad < tile.quads; ++quad, columns += kGroup * 4, query += 4) {
    const __m512i a = _mm512_loadu_si512(columns), b = _mm512_loadu_si512(columns + 64);
    if (ahead != nullptr) {
      const std::int64_t i = quad % 16 * 2;
      __builtin_prefetch(ahead + next[i] + quad / 16 * 64, 0, 3);
      __builtin_prefetch(ahead + next[i + 1] + quad / 16 * 64, 0, 3);
    }
    NANOVLLM_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m512i q = four_bytes(query + r * tile.query_stride);
      low[r] = _mm512_dpbusd_epi32(low[r], a, q);
      high[r] = _mm512_dpbusd_epi32(high[r], b, q);
    }
  }
  const __m512 scales[2] = {_mm512_loadu_ps(tile.key_scales + key), _mm512_loadu_ps(tile.key_scales + key + 16)};
  NANOVLLM_UNROLL
  for (int r = 0; r < R; ++r) {
    const __m512 scale = _mm512_set1_ps(tile.query_scales[row + r]);
    float* const scores = tile.scores + r * kStep + key;
    _mm512_storeu_ps(scores, _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(low[r]), scales[0]), scale));
    _mm512_storeu_ps(scores + 16, _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(high[r]), scales[1]), scale));
  }
}

// How the states of R rows take up a step: states * before + sums * now.
struct Shares {
  alignas(64) float before[16], now[16];
};

// Weighs the values of a group of features for R rows and adds them to their sums.
template <int R>
void weigh_rows(const IntegerTile& tile, std::int64_t d, const Shares& shares, float* sums, const std::int8_t* ahead) {
  const std::int64_t stride = padded_head_size(tile.call), first = tile.step.first / 2 * 2;
  const std::int16_t* panel = tile.values + d * kStep + first * kGroup;
  const std::int64_t* const next = tile.step.slots + kStep;
  __m512i low[R], high[R];
  NANOVLLM_UNROLL
  for (int r = 0; r < R; ++r) low[r] = high[r] = _mm512_setzero_si512();
  for (std::int64_t key = first; key < tile.step.end; key += 2, panel += 2 * kGroup) {
    const __m512i a = _mm512_loadu_si512(panel), b = _mm512_loadu_si512(panel + kGroup);
    if (ahead != nullptr) __builtin_prefetch(ahead + next[key + d / kGroup % 2] + d / 64 * 64, 0, 3);
    NANOVLLM_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m512i weight = four_bytes(tile.weights + r * kStep + key);
      low[r] = _mm512_dpwssd_epi32(low[r], a, weight);
      high[r] = _mm512_dpwssd_epi32(high[r], b, weight);
    }
  }
  NANOVLLM_UNROLL
  for (int r = 0; r < R; ++r) {
    const __m512 before = _mm512_set1_ps(shares.before[r]), now = _mm512_set1_ps(shares.now[r]);
    const auto add = [&](float* sum, __m512i x) {
      const __m512 earlier = _mm512_mul_ps(_mm512_loadu_ps(sum), before);
      _mm512_storeu_ps(sum, _mm512_fmadd_ps(_mm512_cvtepi32_ps(x), now, earlier));
    };
    in_order(low[r], high[r]);
    add(sums + r * stride + d, low[r]);
    if (d + 16 < stride) add(sums + r * stride + d + 16, high[r]);
  }
}

// What the current step adds to R rows from `row` on, all of which see a key of it.
template <int R>
void attend_rows(const IntegerTile& tile, std::int64_t head, std::int64_t row, const Weigher& weigher, Ahead ahead,
                 const AttentionStates& states) {
  for (std::int64_t key = tile.step.first / kGroup * kGroup; key < tile.step.end; key += kGroup) {
    score_rows<R>(tile, head * tile.rows + row, key, ahead.values);
  }
  Shares shares;
  alignas(64) float largest[16] = {}, units[16] = {};
  __m512 weights[R];
  for (int r = 0; r < R; ++r) {
    const Visible seen = visible(tile.step, row + r);
    const Softened softened = weigher.soften(tile.scores + r * kStep, seen, tile.weights + r * kStep);
    weights[r] = softened.sum;
    largest[r] = softened.largest;
    units[r] = softened.unit;
  }
  const auto there = static_cast<__mmask16>((1u << R) - 1);
  const __m512 before = _mm512_maskz_loadu_ps(there, states.largest + row), now = _mm512_load_ps(largest);
  const __m512 most = _mm512_max_ps(before, now);
  alignas(64) float shares_now[16];
  _mm512_mask_storeu_ps(states.largest + row, there, most);
  _mm512_store_ps(shares.before, exp2_of_negative(before - most));
  const __m512 now_share = exp2_of_negative(now - most);
  _mm512_store_ps(shares_now, now_share);
  _mm512_store_ps(shares.now, now_share * _mm512_load_ps(units));
  for (int r = 0; r < R; ++r) {
    float* const lanes = states.weights + (row + r) * kLanes;
    const __m512 earlier = _mm512_mul_ps(_mm512_loadu_ps(lanes), _mm512_set1_ps(shares.before[r]));
    _mm512_storeu_ps(lanes, _mm512_fmadd_ps(weights[r], _mm512_set1_ps(shares_now[r]), earlier));
  }
  for (std::int64_t d = 0; d < tile.head_size; d += kGroup) {
    weigh_rows<R>(tile, d, shares, states.sums + row * padded_head_size(tile.call), ahead.keys);
  }
}

// The same for up to R rows.
template <int R>
void attend_up_to(std::int64_t rows, const IntegerTile& tile, std::int64_t head, std::int64_t row,
                  const Weigher& weigher, Ahead ahead, const AttentionStates& states) {
  if constexpr (R > 1) {
    if (rows < R) return attend_up_to<R - 1>(rows, tile, head, row, weigher, ahead, states);
  }
  attend_rows<R>(tile, head, row, weigher, ahead, states);
}

// Finds the scales of the current step's keys and values. A value that is not a number makes its key's score one, too.
inline void find_scales(const IntegerTile& tile, std::int64_t kv_head) {
  for (std::int64_t key = tile.step.first; key < tile.step.end; ++key) {
    const std::int64_t place = tile.step.scales[key] + kv_head;
    tile.value_scales[key] = tile.call.value_scale[place];
    tile.key_scales[key] = tile.call.key_scale[place] + 0 * tile.value_scales[key];
  }
}

// Adds the current step to the states of one KV head of the tile, counted from its first.
inline void attend_step(const IntegerTile& tile, std::int64_t head, const AttentionStates& states) {
  const auto sees = [&](std::int64_t row) {
    const Visible seen = visible(tile.step, row);
    return seen.first < seen.end;
  };
  std::int64_t row = 0, end = tile.rows;  // of the rows that see a key: they stand together
  while (!sees(row)) row += tile.step.group;
  while (!sees(end - 1)) end -= tile.step.group;
  const std::int64_t kv_head = tile.step.tile.first_kv_head + head, offset = kv_head * tile.head_size;
  find_scales(tile, kv_head);
  const std::int8_t* const keys = static_cast<const std::int8_t*>(tile.call.key_cache) + offset;
  const std::int8_t* const values = static_cast<const std::int8_t*>(tile.call.value_cache) + offset;
  pack_keys(tile, keys);
  pack_values(tile, values);
  const Weigher weigher(tile.value_scales, tile.call.softcap, tile.step.end - tile.step.first == kStep);
  for (Ahead ahead{keys, values}; row < end; row += kRows, ahead = {}) {
    attend_up_to<kRows>(lesser(end - row, kRows), tile, head, row, weigher, ahead, states);
  }
}

// Rounds a head of `size` features, which fill whole vectors, to integers. Returns their scale, which is NaN where
// there is a feature that is not finite; sum: of the integers.
inline float quantize_query(const float* features, std::int64_t size, std::int8_t* out, std::int32_t* sum) {
  __m512i most = _mm512_setzero_si512();  // sizes as integers have the same order, and NaN comes last
  for (std::int64_t d = 0; d < size; d += 16) {
    const __m512i sizes = _mm512_and_si512(_mm512_loadu_si512(features + d), _mm512_set1_epi32(0x7fffffff));
    most = _mm512_max_epu32(most, sizes);
  }
  const std::uint32_t bits = _mm512_reduce_max_epu32(most);
  float largest;
  __builtin_memcpy(&largest, &bits, sizeof largest);
  const bool finite = bits < 0x7f800000;
  const float wanted = largest / 127.0f, scale = wanted < 0x1p-100f ? 0x1p-100f : wanted;
  const __m512 factor = _mm512_set1_ps(1.0f / scale);
  __m512i total = _mm512_setzero_si512();
  for (std::int64_t d = 0; d < size; d += 16) {
    const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(features + d), factor));
    const __m512i kept = finite ? whole : _mm512_setzero_si512();
    total = _mm512_add_epi32(total, kept);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + d), _mm512_cvtsepi32_epi8(kept));
  }
  *sum = _mm512_reduce_add_epi32(total);
  return finite ? scale : __builtin_nanf("");
}

// Before the first step.
inline void start(const IntegerTile& tile) {
  const float scale = tile.call.softcap > 0 ? tile.call.scale / tile.call.softcap : tile.call.scale * kLog2E;
  float* const features = tile.features;
  for (std::int64_t head = 0; head < tile.step.tile.num_kv_heads; ++head) {
    for (std::int64_t row = 0; row < tile.rows; ++row) {
      const std::int64_t i = head * tile.rows + row;
      for (std::int64_t d = tile.head_size; d < tile.query_stride; ++d) features[d] = 0;
      rotate_query(tile.step, head, row, 1, features);
      std::int32_t sum;
      std::int8_t* const query = tile.queries + i * tile.query_stride;
      tile.query_scales[i] = scale * quantize_query(features, tile.query_stride, query, &sum);
      tile.offsets[i] = -128 * sum;
    }
  }
}

}  // namespace
