// The operator nanovllm::QuantizedLinear_v1, as export/quantized_linear.py states its contract.
#pragma once

#include "custom_op.h"
#include "row_sums.h"

namespace nanovllm {

class QuantizedLinearOp {
 public:
  static constexpr const char* kName = "QuantizedLinear_v1";
  static constexpr OrtElementType kInputs[] = {ORT_FLOAT, ORT_INT8, ORT_FLOAT};  // x, weight, weight_scale
  static constexpr OrtElementType kOutputs[] = {ORT_FLOAT};

  QuantizedLinearOp(const Ort& ort, const OrtKernelInfo* info);
  void compute(OrtKernelContext* context) const;

 private:
  const Ort& ort_;
  RowSums row_sums_;
};

}  // namespace nanovllm
