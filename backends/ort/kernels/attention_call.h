// One call of paged attention: pointers and sizes. Free of the standard library's templates, because files compiled for
// different processors include it and must not leave their own versions of shared functions to the linker.
#pragma once

#include <cstdint>

namespace nanovllm {

// What the pools hold: features as they are, rounded, or as integers with a scale for each token and head.
enum class PoolType { float32, bfloat16, int8 };

// The upper half of a float.
struct BFloat16 {
  std::uint16_t bits;
};

// Shapes, types and meaning as in the contract (export/paged_attention.py); num_* and *_size are their axes.
struct PagedAttention {
  std::int64_t num_tokens, num_seqs, max_blocks, num_blocks, block_size, max_positions;
  std::int64_t num_heads, num_kv_heads, head_size, rotary_dim, window;
  bool rotary_interleaved;
  float scale, softcap;
  const float *query, *key, *value;
  PoolType pool_type;
  void *key_cache, *value_cache;   // updated in place: float, BFloat16 or std::int8_t
  float *key_scale, *value_scale;  // likewise; null where the pools are not int8
  const std::int32_t *query_start, *context_lens, *block_tables, *slot_mapping;
  const std::int64_t* positions;
  const float *cos, *sin;
  float* output;
};

// Query heads that read one KV head.
static inline std::int64_t group_size(const PagedAttention& call) { return call.num_heads / call.num_kv_heads; }

// Features of one token in a pool.
static inline std::int64_t slot_size(const PagedAttention& call) { return call.num_kv_heads * call.head_size; }

// Writes a head, rotated by the position of packed row `token` and then scaled, to `out`.
static inline void rotate(const PagedAttention& call, const float* head, std::int64_t token, float scale, float* out) {
  const std::int64_t half = call.rotary_dim / 2;
  const float* cos = call.cos + call.positions[token] * half;
  const float* sin = call.sin + call.positions[token] * half;
  if (call.rotary_interleaved) {
    for (std::int64_t i = 0; i < half; ++i) {
      const float x = head[2 * i], y = head[2 * i + 1];
      out[2 * i] = (x * cos[i] - y * sin[i]) * scale;
      out[2 * i + 1] = (x * sin[i] + y * cos[i]) * scale;
    }
  } else {
    for (std::int64_t i = 0; i < half; ++i) {
      const float x = head[i], y = head[i + half];
      out[i] = (x * cos[i] - y * sin[i]) * scale;
      out[i + half] = (x * sin[i] + y * cos[i]) * scale;
    }
  }
  for (std::int64_t i = 2 * half; i < call.head_size; ++i) out[i] = head[i] * scale;
}

}  // namespace nanovllm
