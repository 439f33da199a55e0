// The operators nanovllm::QuantizedLinear_v1 and its fused forms, as export/quantized_linear.py and
// export/fused_linear.py state their contracts.
#pragma once

#include <array>

#include "custom_op.h"
#include "product_neighbours.h"
#include "quantized_linear.h"
#include "row_sums.h"

namespace nanovllm {

// What all forms do. Inputs: x, weight, weight_scale, then of the norm's gain, bias and residual those that there are.
class QuantizedLinearOp {
 public:
  void compute(OrtKernelContext* context) const;

 protected:
  QuantizedLinearOp(const Ort& ort, const OrtKernelInfo* info, RowSource source, bool has_bias, bool has_residual);

 private:
  const Ort& ort_;
  NeighbourInputs neighbours_;
  RowSums row_sums_;
};

template <RowSource kSource, bool kBias, bool kResidual>
class QuantizedLinearForm : public QuantizedLinearOp {
 public:
  static constexpr const char* kNames[3][2][2] = {
      {{"QuantizedLinear_v1", "QuantizedLinearResidual_v1"},
       {"QuantizedLinearBias_v1", "QuantizedLinearBiasResidual_v1"}},
      {{"NormQuantizedLinear_v1", "NormQuantizedLinearResidual_v1"},
       {"NormQuantizedLinearBias_v1", "NormQuantizedLinearBiasResidual_v1"}},
      {{"SiluQuantizedLinear_v1", "SiluQuantizedLinearResidual_v1"},
       {"SiluQuantizedLinearBias_v1", "SiluQuantizedLinearBiasResidual_v1"}},
  };
  static constexpr const char* kName = kNames[static_cast<int>(kSource)][kBias][kResidual];
  static constexpr std::size_t kNumInputs = 3 + (kSource == RowSource::rms_norm) + kBias + kResidual;
  static constexpr std::array<OrtElementType, kNumInputs> kInputs = [] {
    std::array<OrtElementType, kNumInputs> types = {};
    for (std::size_t i = 0; i < kNumInputs; ++i) types[i] = i == 1 ? ORT_INT8 : ORT_FLOAT;  // 1: weight
    return types;
  }();
  static constexpr OrtElementType kOutputs[] = {ORT_FLOAT};

  QuantizedLinearForm(const Ort& ort, const OrtKernelInfo* info)
      : QuantizedLinearOp(ort, info, kSource, kBias, kResidual) {}
};

}  // namespace nanovllm
