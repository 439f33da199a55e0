// The operator nanovllm::PagedAttention_v1, as export/paged_attention.py states its contract.
#pragma once

#include "attention_call.h"
#include "custom_op.h"

namespace nanovllm {

class PagedAttentionOp {
 public:
  static constexpr const char* kName = "PagedAttention_v1";
  static constexpr OrtElementType kInputs[] = {
      ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT,  // query, key, value, key_cache, value_cache
      ORT_INT32, ORT_INT32, ORT_INT32, ORT_INT32, ORT_INT64,  // query_start .. slot_mapping, positions
      ORT_FLOAT, ORT_FLOAT, ORT_INT64,                        // cos, sin, block_size
  };
  static constexpr OrtElementType kOutputs[] = {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT};  // output, key and value cache

  PagedAttentionOp(const Ort& ort, const OrtKernelInfo* info);
  void compute(OrtKernelContext* context) const;

 private:
  const Ort& ort_;
  PagedAttention attributes_ = {};  // a call with the node's attributes and nothing else
};

}  // namespace nanovllm
