// Attention of one tile; compiled once for each instruction set by the files that include this.
//
// Tile is the arithmetic: memory of its own cut from the scratch, `start(tile)` before the first step, and
// `attend_step(tile, head, states)`, which adds the keys of a step to the states of a KV head.
//
// A row's operations and their order depend on its own visible keys alone.
#pragma once

#include "attention_keys.h"
#include "attention_states.h"

namespace {

// All of a tile's memory.
template <typename Tile>
struct Work {
  const std::int64_t head_states;  // floats of the states of a KV head
  Keys step;
  float* const total;  // states of each KV head, of all splits so far
  float* const split;  // and of the current split
  const Tile tile;

  Work(const PagedAttention& call, const AttentionTile& tile, Scratch& scratch)
      : head_states(states_floats(call, rows_per_head(call, tile))),
        step(call, tile, scratch),
        total(scratch.take<float>(tile.num_kv_heads * head_states)),
        split(scratch.take<float>(tile.num_kv_heads * head_states)),
        tile(step, scratch) {}

  AttentionStates states(float* memory, std::int64_t head) const {
    return states_at(step.call, memory + head * head_states, step.rows);
  }
};

// The states of a split for all KV heads of the tile, one after the other in `memory`.
template <typename Tile>
void attend_split(Work<Tile>& work, std::int64_t split, float* memory) {
  const std::int64_t num_kv_heads = work.step.tile.num_kv_heads, stride = padded_head_size(work.step.call);
  for (std::int64_t head = 0; head < num_kv_heads; ++head) clear(work.states(memory, head), work.step.rows, stride);
  find_slots(work.step, split);
  for (std::int64_t start = 0; start < kSplit; start += kStep) {
    if (!enter_step(work.step, split, start)) continue;
    for (std::int64_t head = 0; head < num_kv_heads; ++head) attend_step(work.tile, head, work.states(memory, head));
  }
}

template <typename Tile>
std::int64_t scratch_floats(const PagedAttention& call, const AttentionTile& tile) {
  Scratch scratch(nullptr);
  Work<Tile>(call, tile, scratch);
  return scratch.floats();
}

template <typename Tile>
void attend(const PagedAttention& call, const AttentionTile& tile, float* memory, float* partial) {
  Scratch scratch(memory);
  Work<Tile> work(call, tile, scratch);
  start(work.tile);
  if (partial != nullptr) return attend_split(work, tile.first_split, partial);
  attend_split(work, tile.first_split, work.total);
  for (std::int64_t split = tile.first_split + 1; split < tile.first_split + tile.num_splits; ++split) {
    attend_split(work, split, work.split);
    for (std::int64_t head = 0; head < tile.num_kv_heads; ++head) {
      join_states(work.states(work.total, head), work.states(work.split, head), work.step.rows, padded_head_size(call));
    }
  }
  for (std::int64_t head = 0; head < tile.num_kv_heads; ++head) {
    write_output(call, tile, head, work.states(work.total, head));
  }
}

inline void join(const PagedAttention& call, const AttentionTile& tile, float* partials) {
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

// The functions of one instruction set and arithmetic.
template <typename Tile>
constexpr nanovllm::AttentionKernel kAttentionKernel{scratch_floats<Tile>, attend<Tile>, join};

}  // namespace
