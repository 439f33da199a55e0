// The operator nanovllm::GatedSilu_v1, as export/gated_silu.py states its contract.
#pragma once

#include "custom_op.h"

namespace nanovllm {

class GatedSiluOp {
 public:
  static constexpr const char* kName = "GatedSilu_v1";
  static constexpr OrtElementType kInputs[] = {ORT_FLOAT};  // gate_up
  static constexpr OrtElementType kOutputs[] = {ORT_FLOAT};

  GatedSiluOp(const Ort& ort, const OrtKernelInfo*) : ort_(ort) {}
  void compute(OrtKernelContext* context) const;

 private:
  const Ort& ort_;
};

}  // namespace nanovllm
