// The operator nanovllm::GreedyHead_v1, as export/greedy_head.py states its contract.
#pragma once

#include "custom_op.h"
#include "row_sums.h"

namespace nanovllm {

class GreedyHeadOp {
 public:
  static constexpr const char* kName = "GreedyHead_v1";
  static constexpr OrtElementType kInputs[] = {ORT_FLOAT, ORT_INT8,  ORT_FLOAT,   // x, weight, weight_scale
                                               ORT_UINT8, ORT_FLOAT, ORT_FLOAT};  // sketch, sketch_scale, sketch_step
  static constexpr OrtElementType kOutputs[] = {ORT_INT64};
  static constexpr std::size_t kNumRequired = 3;

  GreedyHeadOp(const Ort& ort, const OrtKernelInfo* info);
  void compute(OrtKernelContext* context) const;

 private:
  const Ort& ort_;
  RowSums row_sums_;
};

}  // namespace nanovllm
