// The operators nanovllm::PagedAttention_v1 and those for smaller pools, as export/paged_attention.py states their
// contract.
#pragma once

#include "attention_call.h"
#include "custom_op.h"

namespace nanovllm {

constexpr auto ORT_BFLOAT16 = static_cast<OrtElementType>(16);

// What the operators have in common.
class PagedAttentionNode {
 public:
  void compute(OrtKernelContext* context) const;

 protected:
  PagedAttentionNode(const Ort& ort, const OrtKernelInfo* info, const char* name, PoolType pool_type);

 private:
  void check(bool condition, const char* what) const;
  void check_attributes() const;
  void check_shapes(const Tensor* in, const PagedAttention& call) const;

  const Ort& ort_;
  const char* const name_;
  PagedAttention attributes_ = {};  // a call with the node's attributes, its pools' type and nothing else
};

class PagedAttentionOp : public PagedAttentionNode {
 public:
  static constexpr const char* kName = "PagedAttention_v1";
  static constexpr OrtElementType kInputs[] = {
      ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT,  // query, key, value, key_cache, value_cache
      ORT_INT32, ORT_INT32, ORT_INT32, ORT_INT32, ORT_INT64,  // query_start .. slot_mapping, positions
      ORT_FLOAT, ORT_FLOAT, ORT_INT64,                        // cos, sin, block_size
  };
  static constexpr OrtElementType kOutputs[] = {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT};  // output, key and value cache

  PagedAttentionOp(const Ort& ort, const OrtKernelInfo* info)
      : PagedAttentionNode(ort, info, kName, PoolType::float32) {}
};

class PagedAttentionBFloat16Op : public PagedAttentionNode {
 public:
  static constexpr const char* kName = "PagedAttentionBFloat16_v1";
  static constexpr OrtElementType kInputs[] = {
      ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_BFLOAT16, ORT_BFLOAT16,
      ORT_INT32, ORT_INT32, ORT_INT32, ORT_INT32,    ORT_INT64,
      ORT_FLOAT, ORT_FLOAT, ORT_INT64,
  };
  static constexpr OrtElementType kOutputs[] = {ORT_FLOAT, ORT_BFLOAT16, ORT_BFLOAT16};

  PagedAttentionBFloat16Op(const Ort& ort, const OrtKernelInfo* info)
      : PagedAttentionNode(ort, info, kName, PoolType::bfloat16) {}
};

class PagedAttentionInt8Op : public PagedAttentionNode {
 public:
  static constexpr const char* kName = "PagedAttentionInt8_v2";
  static constexpr OrtElementType kInputs[] = {
      ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_INT8,  ORT_INT8,
      ORT_INT32, ORT_INT32, ORT_INT32, ORT_INT32, ORT_INT64,
      ORT_FLOAT, ORT_FLOAT, ORT_INT64, ORT_FLOAT, ORT_FLOAT,  // the last two: key_scale, value_scale
  };
  static constexpr OrtElementType kOutputs[] = {ORT_FLOAT, ORT_INT8, ORT_INT8, ORT_FLOAT, ORT_FLOAT};

  PagedAttentionInt8Op(const Ort& ort, const OrtKernelInfo* info)
      : PagedAttentionNode(ort, info, kName, PoolType::int8) {}
};

}  // namespace nanovllm
