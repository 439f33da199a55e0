// Which keys a tile looks at, step by step, and where they lie in the pools.
#pragma once

#include "attention_scratch.h"
#include "attention_tile.h"

namespace {

using nanovllm::AttentionTile;
using nanovllm::kSplit;
using nanovllm::kStep;
using nanovllm::PagedAttention;

inline std::int64_t lesser(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
inline std::int64_t greater(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

// The part of the current step that at least one row of the tile sees: keys first .. end - 1, from the step's start.
struct Keys {
  const PagedAttention& call;
  const AttentionTile& tile;
  std::int64_t rows, group;
  std::int64_t* split_slots;   // (kSplit + kStep,), where each key lies in a pool, in features
  std::int64_t* split_scales;  // (kSplit + kStep,), where its first scale lies
  std::int64_t step_start = 0, first = 0, end = 0;
  const std::int64_t *slots = nullptr, *scales = nullptr;  // of the current step, and behind them those of the next

  Keys(const PagedAttention& call, const AttentionTile& tile, Scratch& scratch)
      : call(call),
        tile(tile),
        rows(rows_per_head(call, tile)),
        group(group_size(call)),
        split_slots(scratch.take<std::int64_t>(kSplit + kStep)),
        split_scales(scratch.take<std::int64_t>(kSplit + kStep)) {}
};

// The keys of the current step that a row sees, from its start: first .. end - 1.
struct Visible {
  std::int64_t first, end;
};

inline Visible visible(const Keys& keys, std::int64_t row) {
  const std::int64_t place = keys.tile.first_place + row / keys.group - keys.step_start;
  const std::int64_t first = keys.call.window > 0 ? greater(place - keys.call.window + 1, 0) : 0;
  return {first, lesser(place + 1, kStep)};
}

// Finds where the keys of a split lie that the tile may see, and some of the split after it. Where no key
// is, a neighbour's slot stands, so that there is something to ask for.
inline void find_slots(const Keys& keys, std::int64_t split) {
  const PagedAttention& call = keys.call;
  const std::int32_t* table = call.block_tables + keys.tile.sequence * call.max_blocks;
  const std::int64_t last_place = keys.tile.first_place + keys.tile.num_queries - 1;
  const std::int64_t oldest = call.window > 0 ? greater(keys.tile.first_place - call.window + 1, 0) : 0;
  const std::int64_t first = greater(split * kSplit, oldest);
  std::int64_t place = first;
  const std::int64_t stop = lesser((split + 1) * kSplit + kStep, last_place + 1);
  std::int64_t* slots = keys.split_slots - split * kSplit;  // by place
  std::int64_t* scales = keys.split_scales - split * kSplit;
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

// Writes the query of a row for a KV head of the tile, rotated and then scaled, to `out`.
inline void rotate_query(const Keys& keys, std::int64_t head, std::int64_t row, float scale, float* out) {
  const PagedAttention& call = keys.call;
  const std::int64_t token = keys.tile.first_token + row / keys.group;
  const std::int64_t query_head = (keys.tile.first_kv_head + head) * keys.group + row % keys.group;
  rotate(call, call.query + (token * call.num_heads + query_head) * call.head_size, token, scale, out);
}

// Goes to a step of a split whose slots are known. Returns whether a row of the tile sees a key there.
inline bool enter_step(Keys& keys, std::int64_t split, std::int64_t start) {
  keys.step_start = split * kSplit + start;
  keys.slots = keys.split_slots + start;
  keys.scales = keys.split_scales + start;
  keys.first = visible(keys, 0).first;
  keys.end = visible(keys, keys.rows - 1).end;
  return keys.first < keys.end;
}

}  // namespace
