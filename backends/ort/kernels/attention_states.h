// Softmax over some of a row's keys: started, joined with that over others, and finished. Scores are in powers of two.
#pragma once

#include "attention_tile.h"
#include "simd.h"

namespace {

using nanovllm::AttentionStates;
using nanovllm::AttentionTile;
using nanovllm::kLanes;
using nanovllm::PagedAttention;

constexpr float kLog2E = 1.44269504f;

// softcap * tanh(x), in powers of two; x is the score over softcap.
inline Vec capped(Vec x, float softcap) {
  const Vec size = x < Vec{} ? -x : x;
  const Vec e = exp2_of_negative(size * all(-2.0f * kLog2E));
  const Vec tanh = (all(1.0f) - e) / (all(1.0f) + e);
  return (x < Vec{} ? -tanh : tanh) * all(softcap * kLog2E);
}

// Before any key.
inline void clear(const AttentionStates& states, std::int64_t rows, std::int64_t stride) {
  __builtin_memset(states.sums, 0, static_cast<std::size_t>(rows * stride) * sizeof(float));
  __builtin_memset(states.weights, 0, static_cast<std::size_t>(rows * kLanes) * sizeof(float));
  for (std::int64_t row = 0; row < rows; ++row) states.largest[row] = -__builtin_inff();
}

// Joins states of the next split to those of the splits before it.
inline void join_states(const AttentionStates& total, const AttentionStates& next, std::int64_t rows,
                        std::int64_t stride) {
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

inline void write_output(const PagedAttention& call, const AttentionTile& tile, std::int64_t head,
                  const AttentionStates& states) {
  const std::int64_t group = group_size(call), stride = padded_head_size(call);
  for (std::int64_t row = 0; row < tile.num_queries * group; ++row) {
    const std::int64_t query_head = (tile.first_kv_head + head) * group + row % group;
    float* output = call.output + ((tile.first_token + row / group) * call.num_heads + query_head) * call.head_size;
    const float weights = sum_lanes(load(states.weights + row * kLanes));
    for (std::int64_t d = 0; d < call.head_size; ++d) output[d] = states.sums[row * stride + d] / weights;
  }
}

}  // namespace
