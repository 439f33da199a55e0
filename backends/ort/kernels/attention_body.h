// Attention of one tile; compiled once for each instruction set by the files that include this.
//
// For a split, step by step of kStep keys; for each KV head, with all rows (queries x heads of the group) at once:
//
//     groups of 2 vectors of keys ->  transposed, (head size, keys)  ->  scores, (rows, kStep): rows x keys in registers
//                                     (small features by fours of bytes, which are then taken apart)
//     scores of a row             ->  weights 2 ** (score - largest so far); earlier sums are scaled to a new largest
//     rows x features in registers <- weights, values one key after the other
//
// Keys and values of the next step are asked for meanwhile, a little at a time.
//
// A row's operations and their order depend on its own visible keys alone. What a row may not see is never multiplied:
// scores of hidden keys are overwritten, their values are not read for it.
#pragma once

#include "attention_registers.h"
#include "attention_tile.h"
#include "simd.h"

namespace {

using nanovllm::AttentionStates;
using nanovllm::AttentionTile;
using nanovllm::kLanes;
using nanovllm::kSplit;
using nanovllm::PagedAttention;

constexpr float kLog2E = 1.44269504f;
// A tile's memory, and the part of a step that at least one of its rows sees: keys first .. end - 1, from its start.
struct Work {
  const PagedAttention& call;
  const AttentionTile& tile;
  std::int64_t rows, group, head_size, stride;  // stride: floats from one row of sums to the next
  float* queries;                               // (KV heads, rows, head_size), rotated and scaled
  float* scores;                                // (rows, kStep), later the weights
  float* columns;                               // (head_size, kKeys)
  float* zeros;                                 // (head_size,)
  float* split;                                 // states of each KV head, of the current split
  float* total;                                 // and of all splits so far
  float *key_scales, *value_scales;             // (kStep,) each
  std::int64_t* split_slots;                    // (kSplit + kStep,), where each key lies in a pool, in features
  std::int64_t* split_scales;                   // (kSplit + kStep,), where its first scale lies
  std::int64_t step_start, first, end;
  const std::int64_t* slots;  // of the current step, and behind them those of the next
};

template <int R, typename T>
void weigh_heads(const Work& work, const float* weights, std::int64_t first, std::int64_t end, const T* values,
                 float* sums, bool ahead) {
  if (first >= end) return;
  std::int64_t d = 0;
  for (; d + kWeighVecs * kWidth <= work.head_size; d += kWeighVecs * kWidth) {
    weigh_rows<R, kWeighVecs>(weights, first, end, values + d, work.slots, sums + d, work.stride, 0, ahead);
  }
  for (; d + kWidth <= work.head_size; d += kWidth) {
    weigh_rows<R, 1>(weights, first, end, values + d, work.slots, sums + d, work.stride, 0, ahead);
  }
  if (d < work.head_size) {
    const int part = static_cast<int>(work.head_size - d);
    weigh_rows<R, 1>(weights, first, end, values + d, work.slots, sums + d, work.stride, part, ahead);
  }
}

template <int R, typename T>
void weigh_up_to(std::int64_t rows, const Work& work, const float* weights, std::int64_t first, std::int64_t end,
                 const T* values, float* sums, bool ahead) {
  if constexpr (R > 1) {
    if (rows < R) return weigh_up_to<R - 1>(rows, work, weights, first, end, values, sums, ahead);
  }
  weigh_heads<R>(work, weights, first, end, values, sums, ahead);
}

inline std::int64_t lesser(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
inline std::int64_t greater(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

// The keys of the current step that a row sees, from its start: first .. end - 1.
struct Visible {
  std::int64_t first, end;
};

inline Visible visible(const Work& work, std::int64_t row) {
  const std::int64_t place = work.tile.first_place + row / work.group - work.step_start;
  const std::int64_t first = work.call.window > 0 ? greater(place - work.call.window + 1, 0) : 0;
  return {first, lesser(place + 1, kStep)};
}

// Finds where the keys of a split lie that the tile may see, and some of the split after it. Where no key
// is, a neighbour's slot stands, so that there is something to ask for.
void find_slots(const Work& work, std::int64_t split) {
  const PagedAttention& call = work.call;
  const std::int32_t* table = call.block_tables + work.tile.sequence * call.max_blocks;
  const std::int64_t last_place = work.tile.first_place + work.tile.num_queries - 1;
  const std::int64_t oldest = call.window > 0 ? greater(work.tile.first_place - call.window + 1, 0) : 0;
  const std::int64_t first = greater(split * kSplit, oldest);
  std::int64_t place = first;
  const std::int64_t stop = lesser((split + 1) * kSplit + kStep, last_place + 1);
  std::int64_t* slots = work.split_slots - split * kSplit;  // by place
  std::int64_t* scales = work.split_scales - split * kSplit;
  while (place < stop) {
    const std::int64_t block = table[place / call.block_size], offset = place % call.block_size;
    const std::int64_t end = lesser(stop, place + call.block_size - offset);
    std::int64_t head = (block * call.block_size + offset) * call.num_kv_heads;
    for (; place < end; ++place, head += call.num_kv_heads) {
      slots[place] = head * call.head_size;
      scales[place] = head;
    }
  }
  const std::int64_t used = lesser((split + 1) * kSplit, (stop + kStep - 1) / kStep * kStep) + kStep;
  for (; place < used; ++place) slots[place] = slots[stop - 1];
  for (place = split * kSplit; place < first; ++place) slots[place] = slots[first];
}

// Four bytes of each of a group's keys are a column; each becomes kPack columns, `num_features` in all.
template <typename T>
void unpack_columns(const float* packed, std::int64_t num_features, float* columns) {
  for (std::int64_t f = 0; f < num_features; f += kPack<T>, packed += kKeys) {
    const Vec low = load(packed), high = load(packed + kWidth);
    for (int part = 0; part < kPack<T> && f + part < num_features; ++part, columns += kKeys) {
      store(columns, unpack<T>(low, part));
      store(columns + kWidth, unpack<T>(high, part));
    }
  }
}

// The first features of a group of keys, at most as many as fill a vector, to columns. aligned: whether rows start at
// multiples of 4 bytes.
template <typename T>
void transpose_features(const T* const* rows, std::int64_t num_features, bool aligned, float* columns) {
  const bool whole = num_features == kWidth * kPack<T>;
  const float* places[kKeys];
  float copies[kKeys * kWidth], packed[kKeys * kWidth];
  if (whole && aligned) {
    for (int i = 0; i < kKeys; ++i) places[i] = reinterpret_cast<const float*>(rows[i]);
  } else {
    __builtin_memset(copies, 0, sizeof copies);
    for (int i = 0; i < kKeys; ++i) {
      places[i] = copies + i * kWidth;
      __builtin_memcpy(copies + i * kWidth, rows[i], static_cast<std::size_t>(num_features) * sizeof(T));
    }
  }
  const bool direct = whole && kPack<T> == 1;
  float* out = direct ? columns : packed;
  transpose(places, out, kKeys);
  transpose(places + kWidth, out + kWidth, kKeys);
  if (!direct) unpack_columns<T>(packed, num_features, columns);
}

// Rows of a group of keys, where keys that the tile does not see are rows of zeros, to columns.
template <typename T>
void gather_columns(const Work& work, const T* keys, std::int64_t start) {
  constexpr std::int64_t kMost = kWidth * kPack<T>;
  const T* rows[kKeys];
  for (int i = 0; i < kKeys; ++i) {
    const std::int64_t key = start + i;
    rows[i] = key >= work.first && key < work.end ? keys + work.slots[key] : reinterpret_cast<const T*>(work.zeros);
  }
  const std::int64_t* next = work.slots + kStep + start;
  const bool aligned = work.head_size % kPack<T> == 0;
  for (std::int64_t d = 0; d < work.head_size; d += kMost) {
    for (int i = 0; i < kKeys; ++i) ask_for(keys + next[i] + d);
    transpose_features(rows, lesser(work.head_size - d, kMost), aligned, work.columns + d * kKeys);
    for (int i = 0; i < kKeys; ++i) rows[i] += kMost;
  }
}

template <typename T>
void score(const Work& work, const float* queries, const T* keys) {
  for (std::int64_t start = work.first / kKeys * kKeys; start < work.end; start += kKeys) {
    gather_columns(work, keys, start);
    for (std::int64_t row = 0; row < work.rows; row += kScoreRows) {
      score_up_to<kScoreRows>(lesser(work.rows - row, kScoreRows), queries + row * work.head_size, work.head_size,
                              work.columns, work.scores + row * kStep + start);
    }
  }
}

// Multiplies a row's scores or weights of keys first .. end - 1, and some beside them, by the keys' scales.
inline void apply_scales(const float* scales, std::int64_t first, std::int64_t end, float* row) {
  for (std::int64_t i = first / kWidth * kWidth; i < end; i += kWidth) store(row + i, load(row + i) * load(scales + i));
}

// softcap * tanh(x), in powers of two; x is the score over softcap.
inline Vec capped(Vec x, float softcap) {
  const Vec size = x < Vec{} ? -x : x;
  const Vec e = exp2_of_negative(size * all(-2.0f * kLog2E));
  const Vec tanh = (all(1.0f) - e) / (all(1.0f) + e);
  return (x < Vec{} ? -tanh : tanh) * all(softcap * kLog2E);
}

// A row's scores to weights, in place; what is in `states` of earlier steps is brought to the same largest score.
// Where values have scales, these become part of the weights, not of their sum.
void soften(const Work& work, std::int64_t row, Visible seen, const AttentionStates& states) {
  float* scores = work.scores + row * kStep;
  const std::int64_t start = seen.first / kWidth * kWidth;
  const bool scaled = work.call.key_scale != nullptr;
  if (scaled) apply_scales(work.key_scales, seen.first, seen.end, scores);
  if (work.call.softcap > 0) {
    for (std::int64_t i = start; i < seen.end; i += kWidth) store(scores + i, capped(load(scores + i), work.call.softcap));
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
    float* sums = states.sums + row * work.stride;
    for (std::int64_t d = 0; d < work.stride; d += kWidth) store(sums + d, load(sums + d) * factor);
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
  if (scaled) apply_scales(work.value_scales, seen.first, seen.end, scores);
}

// Sums of weights times values for `rows` rows from `row` on: what all of them see together, the rest row by row.
template <typename T>
void weigh(const Work& work, std::int64_t row, std::int64_t rows, const T* values, const AttentionStates& states) {
  const bool ahead = row == 0;
  Visible common = visible(work, row + rows - 1);
  common.end = visible(work, row).end;
  float* sums = states.sums + row * work.stride;
  const float* weights = work.scores + row * kStep;
  if (common.first >= common.end) common.first = common.end = kStep;  // nothing in common
  for (std::int64_t r = 0; r < rows; ++r) {
    const Visible seen = visible(work, row + r);
    const std::int64_t end = lesser(seen.end, common.first);
    weigh_heads<1>(work, weights + r * kStep, seen.first, end, values, sums + r * work.stride, false);
  }
  weigh_up_to<kWeighRows>(rows, work, weights, common.first, common.end, values, sums, ahead);
  for (std::int64_t r = 0; r < rows; ++r) {
    const Visible seen = visible(work, row + r);
    weigh_heads<1>(work, weights + r * kStep, common.end, seen.end, values, sums + r * work.stride, false);
  }
}

// Finds the scales of the current step's keys and values; 1 where the tile sees no key.
void find_scales(const Work& work, std::int64_t kv_head) {
  const std::int64_t* scales = work.split_scales + (work.slots - work.split_slots);
  for (std::int64_t key = work.first / kWidth * kWidth; key < work.first; ++key) {
    work.key_scales[key] = work.value_scales[key] = 1;
  }
  for (std::int64_t key = work.first; key < work.end; ++key) {
    const std::int64_t place = scales[key] + kv_head;
    work.key_scales[key] = work.call.key_scale[place];
    work.value_scales[key] = work.call.value_scale[place];
  }
  for (std::int64_t key = work.end; key % kWidth != 0; ++key) work.key_scales[key] = work.value_scales[key] = 1;
}

// Adds the current step to the states of one KV head of the tile, counted from its first.
template <typename T>
void attend_step(const Work& work, std::int64_t head, const AttentionStates& states) {
  const std::int64_t kv_head = work.tile.first_kv_head + head, offset = kv_head * work.head_size;
  if (work.call.key_scale != nullptr) find_scales(work, kv_head);
  const T* keys = static_cast<const T*>(work.call.key_cache) + offset;
  const T* values = static_cast<const T*>(work.call.value_cache) + offset;
  score(work, work.queries + head * work.rows * work.head_size, keys);
  for (std::int64_t row = 0; row < work.rows; ++row) {
    const Visible seen = visible(work, row);
    if (seen.first < seen.end) soften(work, row, seen, states);
  }
  for (std::int64_t row = 0; row < work.rows; row += kWeighRows) {
    weigh(work, row, lesser(work.rows - row, kWeighRows), values, states);
  }
}

void attend_step(const Work& work, std::int64_t head, const AttentionStates& states) {
  switch (work.call.pool_type) {
    case nanovllm::PoolType::float32:
      return attend_step<float>(work, head, states);
    case nanovllm::PoolType::bfloat16:
      return attend_step<BFloat16>(work, head, states);
    case nanovllm::PoolType::int8:
      return attend_step<std::int8_t>(work, head, states);
  }
}

void clear(const AttentionStates& states, std::int64_t rows, std::int64_t stride) {
  __builtin_memset(states.sums, 0, static_cast<std::size_t>(rows * stride) * sizeof(float));
  __builtin_memset(states.weights, 0, static_cast<std::size_t>(rows * kLanes) * sizeof(float));
  for (std::int64_t row = 0; row < rows; ++row) states.largest[row] = -__builtin_inff();
}

// The states of a split for all KV heads of the tile, one after the other in `memory`.
void attend_split(Work& work, std::int64_t split, float* memory) {
  const std::int64_t size = states_floats(work.call, work.rows);
  const auto states = [&](std::int64_t head) { return states_at(work.call, memory + head * size, work.rows); };
  for (std::int64_t head = 0; head < work.tile.num_kv_heads; ++head) clear(states(head), work.rows, work.stride);
  find_slots(work, split);
  for (std::int64_t start = 0; start < kSplit; start += kStep) {
    work.step_start = split * kSplit + start;
    work.slots = work.split_slots + start;
    work.first = visible(work, 0).first;
    work.end = visible(work, work.rows - 1).end;
    if (work.first >= work.end) continue;
    for (std::int64_t head = 0; head < work.tile.num_kv_heads; ++head) attend_step(work, head, states(head));
  }
}

// Joins states of the next split to those of the splits before it.
void join_states(const AttentionStates& total, const AttentionStates& next, std::int64_t rows, std::int64_t stride) {
  for (std::int64_t row = 0; row < rows; ++row) {
    const float before = total.largest[row], other = next.largest[row];
    const float largest = before > other ? before : other;
    if (other == -__builtin_inff()) continue;  // no key of that split was seen
    const Vec ours = exp2_of_negative(all(before - largest)), theirs = exp2_of_negative(all(other - largest));
    const auto add = [&](float* a, const float* b) { store(a, fma(load(b), theirs, load(a) * ours)); };
    for (std::int64_t d = 0; d < stride; d += kWidth) add(total.sums + row * stride + d, next.sums + row * stride + d);
    add(total.weights + row * kLanes, next.weights + row * kLanes);
    total.largest[row] = largest;
  }
}

void write_output(const PagedAttention& call, const AttentionTile& tile, std::int64_t head,
                  const AttentionStates& states) {
  const std::int64_t group = group_size(call), stride = padded_head_size(call);
  for (std::int64_t row = 0; row < tile.num_queries * group; ++row) {
    const std::int64_t query_head = (tile.first_kv_head + head) * group + row % group;
    float* output = call.output + ((tile.first_token + row / group) * call.num_heads + query_head) * call.head_size;
    const float weights = sum_lanes(load(states.weights + row * kLanes));
    for (std::int64_t d = 0; d < call.head_size; ++d) output[d] = states.sums[row * stride + d] / weights;
  }
}

void rotate_queries(const Work& work) {
  const PagedAttention& call = work.call;
  const float scale = call.softcap > 0 ? call.scale / call.softcap : call.scale * kLog2E;
  float* out = work.queries;
  for (std::int64_t head = 0; head < work.tile.num_kv_heads; ++head) {
    for (std::int64_t row = 0; row < work.rows; ++row, out += work.head_size) {
      const std::int64_t token = work.tile.first_token + row / work.group;
      const std::int64_t query_head = (work.tile.first_kv_head + head) * work.group + row % work.group;
      rotate(call, call.query + (token * call.num_heads + query_head) * work.head_size, token, scale, out);
    }
  }
}

// How the scratch memory is cut, in floats.
struct Layout {
  std::int64_t rows, states, queries, scores, columns, zeros, scales, slots;

  Layout(const PagedAttention& call, const AttentionTile& tile) {
    const std::int64_t padded = padded_head_size(call);
    rows = rows_per_head(call, tile);
    states = states_floats(call, rows);
    queries = tile.num_kv_heads * rows * padded;
    scores = rows * kStep;
    columns = kKeys * padded;
    zeros = padded;
    scales = kStep;
    slots = (kSplit + kStep) * 2;
  }
};

std::int64_t scratch_floats(const PagedAttention& call, const AttentionTile& tile) {
  const Layout layout(call, tile);
  return layout.queries + layout.scores + layout.columns + layout.zeros + 2 * layout.scales + 2 * layout.slots +
         2 * tile.num_kv_heads * layout.states;
}

void attend(const PagedAttention& call, const AttentionTile& tile, float* scratch, float* partial) {
  const Layout layout(call, tile);
  const auto take = [&scratch](std::int64_t floats) {
    float* memory = scratch;
    scratch += floats;
    return memory;
  };
  Work work{call,
            tile,
            layout.rows,
            group_size(call),
            call.head_size,
            padded_head_size(call),
            take(layout.queries),
            take(layout.scores),
            take(layout.columns),
            take(layout.zeros),
            take(tile.num_kv_heads * layout.states),
            take(tile.num_kv_heads * layout.states),
            take(layout.scales),
            take(layout.scales),
            reinterpret_cast<std::int64_t*>(take(layout.slots)),
            reinterpret_cast<std::int64_t*>(take(layout.slots)),
            0,
            0,
            0,
            nullptr};
  for (std::int64_t d = 0; d < call.head_size; ++d) work.zeros[d] = 0;
  rotate_queries(work);
  if (partial != nullptr) return attend_split(work, tile.first_split, partial);
  const auto states = [&](float* memory, std::int64_t head) {
    return states_at(call, memory + head * layout.states, work.rows);
  };
  attend_split(work, tile.first_split, work.total);
  for (std::int64_t split = tile.first_split + 1; split < tile.first_split + tile.num_splits; ++split) {
    attend_split(work, split, work.split);
    for (std::int64_t head = 0; head < tile.num_kv_heads; ++head) {
      join_states(states(work.total, head), states(work.split, head), work.rows, work.stride);
    }
  }
  for (std::int64_t head = 0; head < tile.num_kv_heads; ++head) {
    write_output(call, tile, head, states(work.total, head));
  }
}

void join(const PagedAttention& call, const AttentionTile& tile, float* partials) {
  const std::int64_t rows = rows_per_head(call, tile), size = states_floats(call, rows);
  for (std::int64_t head = 0; head < tile.num_kv_heads; ++head) {
    const AttentionStates total = states_at(call, partials + head * size, rows);
    for (std::int64_t split = 1; split < tile.num_splits; ++split) {
      float* next = partials + (split * tile.num_kv_heads + head) * size;
      join_states(total, states_at(call, next, rows), rows, padded_head_size(call));
    }
    write_output(call, tile, head, total);
  }
}

}  // namespace
