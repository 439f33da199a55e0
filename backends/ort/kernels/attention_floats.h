// Attention of a tile in float32, whatever the pools hold. For each KV head and step of kStep keys, with all rows
// (queries x heads of the group) at once:
//
//     groups of 2 vectors of keys ->  transposed, (head size, keys)  ->  scores, (rows, kStep): rows x keys in registers
//                                     (small features by fours of bytes, which are then taken apart)
//     scores of a row             ->  weights 2 ** (score - largest so far); earlier sums are scaled to a new largest
//     rows x features in registers <- weights, values one key after the other
//
// Keys and values of the next step are asked for meanwhile, a little at a time. What a row may not see is never
// multiplied: scores of hidden keys are overwritten, their values are not read for it.
#pragma once

#include "attention_columns.h"
#include "attention_states.h"

namespace {

struct FloatTile {
  const Keys& step;
  const PagedAttention& call;
  const std::int64_t rows, head_size, stride;  // stride: floats from one row of sums to the next
  float* const queries;                        // (KV heads, rows, head_size), rotated and scaled
  float* const scores;                         // (rows, kStep), later the weights
  float* const columns;                        // (head_size, kKeys)
  float* const zeros;                          // (head_size,)
  float *const key_scales, *const value_scales;  // (kStep,) each

  FloatTile(const Keys& step, Scratch& scratch)
      : step(step),
        call(step.call),
        rows(step.rows),
        head_size(call.head_size),
        stride(padded_head_size(call)),
        queries(scratch.take<float>(step.tile.num_kv_heads * rows * head_size)),
        scores(scratch.take<float>(rows * kStep)),
        columns(scratch.take<float>(stride * kKeys)),
        zeros(scratch.take<float>(stride)),
        key_scales(scratch.take<float>(kStep)),
        value_scales(scratch.take<float>(kStep)) {}
};

template <int R, typename T>
void weigh_heads(const FloatTile& tile, const float* weights, std::int64_t first, std::int64_t end, const T* values,
                 float* sums, bool ahead) {
  if (first >= end) return;
  std::int64_t d = 0;
  for (; d + kWeighVecs * kWidth <= tile.head_size; d += kWeighVecs * kWidth) {
    weigh_rows<R, kWeighVecs>(weights, first, end, values + d, tile.step.slots, sums + d, tile.stride, 0, ahead);
  }
  for (; d + kWidth <= tile.head_size; d += kWidth) {
    weigh_rows<R, 1>(weights, first, end, values + d, tile.step.slots, sums + d, tile.stride, 0, ahead);
  }
  if (d < tile.head_size) {
    const int part = static_cast<int>(tile.head_size - d);
    weigh_rows<R, 1>(weights, first, end, values + d, tile.step.slots, sums + d, tile.stride, part, ahead);
  }
}

template <int R, typename T>
void weigh_up_to(std::int64_t rows, const FloatTile& tile, const float* weights, std::int64_t first, std::int64_t end,
                 const T* values, float* sums, bool ahead) {
  if constexpr (R > 1) {
    if (rows < R) return weigh_up_to<R - 1>(rows, tile, weights, first, end, values, sums, ahead);
  }
  weigh_heads<R>(tile, weights, first, end, values, sums, ahead);
}

template <typename T>
void score(const FloatTile& tile, const float* queries, const T* keys) {
  for (std::int64_t start = tile.step.first / kKeys * kKeys; start < tile.step.end; start += kKeys) {
    gather_columns(tile.step, keys, reinterpret_cast<const T*>(tile.zeros), start, tile.columns);
    for (std::int64_t row = 0; row < tile.rows; row += kScoreRows) {
      score_up_to<kScoreRows>(lesser(tile.rows - row, kScoreRows), queries + row * tile.head_size, tile.head_size,
                              tile.columns, tile.scores + row * kStep + start);
    }
  }
}

// Multiplies a row's scores or weights of keys first .. end - 1, and some beside them, by the keys' scales.
inline void apply_scales(const float* scales, std::int64_t first, std::int64_t end, float* row) {
  for (std::int64_t i = first / kWidth * kWidth; i < end; i += kWidth) store(row + i, load(row + i) * load(scales + i));
}

// A row's scores to weights, in place; what is in `states` of earlier steps is brought to the same largest score.
// Where values have scales, these become part of the weights, not of their sum.
void soften(const FloatTile& tile, std::int64_t row, Visible seen, const AttentionStates& states) {
  float* scores = tile.scores + row * kStep;
  const std::int64_t start = seen.first / kWidth * kWidth;
  const bool scaled = tile.call.key_scale != nullptr;
  if (scaled) apply_scales(tile.key_scales, seen.first, seen.end, scores);
  if (tile.call.softcap > 0) {
    const float softcap = tile.call.softcap;
    for (std::int64_t i = start; i < seen.end; i += kWidth) store(scores + i, capped(load(scores + i), softcap));
  }
  const float hidden = -__builtin_inff();
  for (std::int64_t i = start; i < seen.first; ++i) scores[i] = hidden;
  for (std::int64_t i = seen.end; i % kWidth != 0; ++i) scores[i] = hidden;
  const float before = states.largest[row];
  Vec most = all(before);
  for (std::int64_t i = start; i < seen.end; i += kWidth) most = larger(most, load(scores + i));
  const float largest = largest_lane(most);
  float* lanes = states.weights + row * kLanes;
  if (largest != before) {
    const Vec factor = exp2_of_negative(all(before - largest));
    float* sums = states.sums + row * tile.stride;
    for (std::int64_t d = 0; d < tile.stride; d += kWidth) store(sums + d, load(sums + d) * factor);
    store(lanes, load(lanes) * factor);
    states.largest[row] = largest;
  }
  Vec sum = load(lanes);
  for (std::int64_t i = start; i < seen.end; i += kWidth) {
    const Vec weight = exp2_of_negative(load(scores + i) - all(largest));
    store(scores + i, weight);
    sum = sum + weight;
  }
  store(lanes, sum);
  if (scaled) apply_scales(tile.value_scales, seen.first, seen.end, scores);
}

// Sums of weights times values for `rows` rows from `row` on: what all of them see together, the rest row by row.
template <typename T>
void weigh(const FloatTile& tile, std::int64_t row, std::int64_t rows, const T* values, const AttentionStates& states) {
  const bool ahead = row == 0;
  Visible common = visible(tile.step, row + rows - 1);
  common.end = visible(tile.step, row).end;
  float* sums = states.sums + row * tile.stride;
  const float* weights = tile.scores + row * kStep;
  if (common.first >= common.end) common.first = common.end = kStep;  // nothing in common
  for (std::int64_t r = 0; r < rows; ++r) {
    const Visible seen = visible(tile.step, row + r);
    const std::int64_t end = lesser(seen.end, common.first);
    weigh_heads<1>(tile, weights + r * kStep, seen.first, end, values, sums + r * tile.stride, false);
  }
  weigh_up_to<kWeighRows>(rows, tile, weights, common.first, common.end, values, sums, ahead);
  for (std::int64_t r = 0; r < rows; ++r) {
    const Visible seen = visible(tile.step, row + r);
    weigh_heads<1>(tile, weights + r * kStep, common.end, seen.end, values, sums + r * tile.stride, false);
  }
}

// Finds the scales of the current step's keys and values; 1 where the tile sees no key.
void find_scales(const FloatTile& tile, std::int64_t kv_head) {
  for (std::int64_t key = tile.step.first / kWidth * kWidth; key < tile.step.first; ++key) {
    tile.key_scales[key] = tile.value_scales[key] = 1;
  }
  for (std::int64_t key = tile.step.first; key < tile.step.end; ++key) {
    const std::int64_t place = tile.step.scales[key] + kv_head;
    tile.key_scales[key] = tile.call.key_scale[place];
    tile.value_scales[key] = tile.call.value_scale[place];
  }
  for (std::int64_t key = tile.step.end; key % kWidth != 0; ++key) tile.key_scales[key] = tile.value_scales[key] = 1;
}

template <typename T>
void attend_step(const FloatTile& tile, std::int64_t head, const AttentionStates& states) {
  const std::int64_t kv_head = tile.step.tile.first_kv_head + head, offset = kv_head * tile.head_size;
  if (tile.call.key_scale != nullptr) find_scales(tile, kv_head);
  const T* keys = static_cast<const T*>(tile.call.key_cache) + offset;
  const T* values = static_cast<const T*>(tile.call.value_cache) + offset;
  score(tile, tile.queries + head * tile.rows * tile.head_size, keys);
  for (std::int64_t row = 0; row < tile.rows; ++row) {
    const Visible seen = visible(tile.step, row);
    if (seen.first < seen.end) soften(tile, row, seen, states);
  }
  for (std::int64_t row = 0; row < tile.rows; row += kWeighRows) {
    weigh(tile, row, lesser(tile.rows - row, kWeighRows), values, states);
  }
}

// Before the first step.
inline void start(const FloatTile& tile) {
  const float scale = tile.call.softcap > 0 ? tile.call.scale / tile.call.softcap : tile.call.scale * kLog2E;
  for (std::int64_t d = 0; d < tile.head_size; ++d) tile.zeros[d] = 0;
  for (std::int64_t head = 0; head < tile.step.tile.num_kv_heads; ++head) {
    for (std::int64_t row = 0; row < tile.rows; ++row) {
      rotate_query(tile.step, head, row, scale, tile.queries + (head * tile.rows + row) * tile.head_size);
    }
  }
}

// Adds the current step to the states of one KV head of the tile, counted from its first.
inline void attend_step(const FloatTile& tile, std::int64_t head, const AttentionStates& states) {
  switch (tile.call.pool_type) {
    case nanovllm::PoolType::float32:
      return attend_step<float>(tile, head, states);
    case nanovllm::PoolType::bfloat16:
      return attend_step<BFloat16>(tile, head, states);
    case nanovllm::PoolType::int8:
      return attend_step<std::int8_t>(tile, head, states);
  }
}

}  // namespace
