#include "attention_op.h"

#include <algorithm>
#include <cstring>

#include "attention.h"

namespace nanovllm {
namespace {

enum Input {
  query, key, value, key_cache, value_cache, query_start, context_lens, block_tables, slots, positions, cos, sin,
  block_size, key_scale, value_scale  // the scales of int8 pools only
};

std::size_t feature_bytes(PoolType type) {
  return type == PoolType::float32 ? sizeof(float) : type == PoolType::bfloat16 ? sizeof(BFloat16) : 1;
}

// The pool, or its scales, that is an output, with the input's content; where the two share memory there is nothing to
// do.
void* updated(const Ort& ort, OrtKernelContext* context, std::size_t index, const Tensor& in, std::size_t bytes) {
  const Tensor out = output_of(ort, context, index, in);
  if (out.data != in.data) {
    const std::int64_t count = in.dims[0] * in.dims[1] * in.dims[2] * in.dims[3];
    std::memmove(out.data, in.data, static_cast<std::size_t>(count) * bytes);
  }
  return out.data;
}

}  // namespace

PagedAttentionNode::PagedAttentionNode(const Ort& ort, const OrtKernelInfo* info, const char* name, PoolType pool_type)
    : ort_(ort), name_(name) {
  std::int64_t interleaved = 0;
  require(ort.attribute(info, "num_heads", &attributes_.num_heads));
  require(ort.attribute(info, "num_kv_heads", &attributes_.num_kv_heads));
  require(ort.attribute(info, "rotary_dim", &attributes_.rotary_dim));
  require(ort.attribute(info, "rotary_interleaved", &interleaved));
  require(ort.attribute(info, "window", &attributes_.window));
  require(ort.attribute(info, "scale", &attributes_.scale));
  require(ort.attribute(info, "softcap", &attributes_.softcap));
  attributes_.rotary_interleaved = interleaved != 0;
  attributes_.pool_type = pool_type;
  check_attributes();
}

void PagedAttentionNode::check(bool condition, const char* what) const {
  if (!condition) throw KernelError(std::string(name_) + ": " + what);
}

void PagedAttentionNode::check_attributes() const {
  const PagedAttention& call = attributes_;
  check(call.num_heads > 0 && call.num_kv_heads > 0 && call.num_heads % call.num_kv_heads == 0,
        "num_heads must be a multiple of num_kv_heads, and both positive");
  check(call.rotary_dim >= 0 && call.rotary_dim % 2 == 0, "rotary_dim must be even and not negative");
  check(call.window >= 0, "window must not be negative");
}

void PagedAttentionNode::check_shapes(const Tensor* in, const PagedAttention& call) const {
  check(in[query].rank == 2 && in[key].rank == 2 && in[key_cache].rank == 4 && in[block_tables].rank == 2 &&
            in[cos].rank == 2,
        "an input has the wrong number of axes");
  check(in[query].dims[1] == call.num_heads * call.head_size, "query must be num_heads * head_dim wide");
  check(in[key].dims[0] == call.num_tokens && in[key].dims[1] == call.num_kv_heads * call.head_size &&
            in[value].dims == in[key].dims,
        "key and value must be (tokens, num_kv_heads * head_dim)");
  check(in[key_cache].dims[2] == call.num_kv_heads && in[value_cache].dims == in[key_cache].dims,
        "key_cache and value_cache must be (num_blocks, block_size, num_kv_heads, head_dim)");
  check(in[query_start].dims[0] == call.num_seqs + 1 && in[block_tables].dims[0] == call.num_seqs,
        "query_start, context_lens and block_tables disagree on the number of sequences");
  check(in[slots].dims[0] == call.num_tokens && in[positions].dims[0] == call.num_tokens,
        "slot_mapping and positions must have one entry a token");
  check(call.rotary_dim <= call.head_size && in[cos].dims[1] == call.rotary_dim / 2 && in[sin].dims == in[cos].dims,
        "cos and sin must be (max_positions, rotary_dim / 2)");
  if (call.pool_type != PoolType::int8) return;
  const std::array<std::int64_t, 4> heads = {call.num_blocks, call.block_size, call.num_kv_heads, 1};
  check(in[key_scale].rank == 3 && in[key_scale].dims == heads && in[value_scale].dims == heads,
        "key_scale and value_scale must be (num_blocks, block_size, num_kv_heads)");
}

void PagedAttentionNode::compute(OrtKernelContext* context) const {
  PagedAttention call = attributes_;
  const bool scaled = call.pool_type == PoolType::int8;
  Tensor in[value_scale + 1];
  for (int i = 0; i < (scaled ? value_scale + 1 : block_size); ++i) {
    in[i] = input_of(ort_, context, static_cast<std::size_t>(i));
  }
  call.num_tokens = in[query].dims[0];
  call.num_seqs = in[context_lens].dims[0];
  call.max_blocks = in[block_tables].dims[1];
  call.num_blocks = in[key_cache].dims[0];
  call.block_size = in[key_cache].dims[1];
  call.head_size = in[key_cache].dims[3];
  call.max_positions = in[cos].dims[0];
  check_shapes(in, call);
  call.query = in[query].as<float>();
  call.key = in[key].as<float>();
  call.value = in[value].as<float>();
  call.query_start = in[query_start].as<std::int32_t>();
  call.context_lens = in[context_lens].as<std::int32_t>();
  call.block_tables = in[block_tables].as<std::int32_t>();
  call.slot_mapping = in[slots].as<std::int32_t>();
  call.positions = in[positions].as<std::int64_t>();
  call.cos = in[cos].as<float>();
  call.sin = in[sin].as<float>();
  const std::string problem = attention_problem(call);
  check(problem.empty(), problem.c_str());
  call.output = output_of(ort_, context, 0, in[query]).as<float>();
  const std::size_t bytes = feature_bytes(call.pool_type);
  call.key_cache = updated(ort_, context, 1, in[key_cache], bytes);
  call.value_cache = updated(ort_, context, 2, in[value_cache], bytes);
  if (scaled) {
    call.key_scale = static_cast<float*>(updated(ort_, context, 3, in[key_scale], sizeof(float)));
    call.value_scale = static_cast<float*>(updated(ort_, context, 4, in[value_scale], sizeof(float)));
  }
  paged_attention(call, SessionThreads(ort_, context));
}

}  // namespace nanovllm
