// The operator nanovllm::BlockLinear_v1, as export/block_linear.py states its contract.
#pragma once

#include "custom_op.h"

namespace nanovllm {

class BlockLinearOp {
 public:
  static constexpr const char* kName = "BlockLinear_v1";
  static constexpr OrtElementType kInputs[] = {ORT_FLOAT, ORT_UINT8, ORT_FLOAT, ORT_FLOAT};
  static constexpr std::size_t kNumRequired = 3;  // x, weight and weight_scale; then bias
  static constexpr OrtElementType kOutputs[] = {ORT_FLOAT};

  BlockLinearOp(const Ort& ort, const OrtKernelInfo* info);
  void compute(OrtKernelContext* context) const;

 private:
  const Ort& ort_;
  std::int64_t num_out_ = 0, num_in_ = 0, bits_ = 0;
};

}  // namespace nanovllm
