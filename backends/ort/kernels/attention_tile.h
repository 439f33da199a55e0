// The piece of paged attention that one thread computes at a time, in a version for each instruction set.
#pragma once

#include "attention_call.h"

namespace nanovllm {

// Results depend on these numbers of keys, so they are the same everywhere.
constexpr std::int64_t kSplit = 512;  // that a thread takes at least
constexpr std::int64_t kStep = 128;   // whose scores are known before any of their values is weighed

constexpr std::int64_t kLanes = 16;  // floats that hold a row's sum of weights, of the widest vector

// Some queries of one sequence that stand together, with the heads of some KV heads, over some splits of their keys; in
// each of the splits at least one of the queries sees a key.
struct AttentionTile {
  std::int64_t sequence;
  std::int64_t first_token, num_queries;  // packed rows
  std::int64_t first_place;               // of the first query in its sequence
  std::int64_t first_kv_head, num_kv_heads;
  std::int64_t first_split, num_splits;
};

// Softmax over some of the keys, before the division. For every row (query, head of the group) of every KV head: the sum
// of weights times values, (rows, padded head size); the sum of the weights, still spread over a vector, (rows, kLanes);
// and the largest score, in powers of two, (rows,), which is -infinity where the row saw no key.
struct AttentionStates {
  float *sums, *weights, *largest;
};

static inline std::int64_t padded_head_size(const PagedAttention& call) { return (call.head_size + 15) / 16 * 16; }

static inline std::int64_t rows_per_head(const PagedAttention& call, const AttentionTile& tile) {
  return tile.num_queries * group_size(call);
}

static inline std::int64_t states_floats(const PagedAttention& call, std::int64_t rows) {
  return (rows * (padded_head_size(call) + kLanes + 1) + 15) / 16 * 16;
}

static inline AttentionStates states_at(const PagedAttention& call, float* memory, std::int64_t rows) {
  float* weights = memory + rows * padded_head_size(call);
  return {memory, weights, weights + rows * kLanes};
}

struct AttentionKernel {
  // Floats that `attend` needs as scratch memory.
  std::int64_t (*scratch_floats)(const PagedAttention&, const AttentionTile&);
  // Attends. partial: null, and the results go to the output; or the tile has one split, whose states go there.
  void (*attend)(const PagedAttention&, const AttentionTile&, float* scratch, float* partial);
  // Joins the states of a tile's splits, which lie one after the other, in order, and writes the output.
  void (*join)(const PagedAttention&, const AttentionTile&, float* partials);
};

AttentionKernel attention_kernel_scalar();
AttentionKernel attention_kernel_avx2();
AttentionKernel attention_kernel_avx512();
AttentionKernel attention_kernel_avx512vnni();  // for int8 pools alone

}  // namespace nanovllm
