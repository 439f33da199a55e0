// The operators nanovllm::QuantizedLinear_v1, PanelLinear_v1 and its fused forms, as export/quantized_linear.py,
// export/panel_linear.py and export/fused_linear.py state their contracts.
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
  QuantizedLinearOp(const Ort& ort, const OrtKernelInfo* info, WeightOrder order, RowSource source, bool has_bias,
                    bool has_residual);

 private:
  const Ort& ort_;
  WeightOrder order_;
  NeighbourInputs neighbours_;
  RowSums row_sums_;
};

// Weights in rows, with nothing joined: tables that others read, too, and matrices without whole panels.
class RowLinear : public QuantizedLinearOp {
 public:
  static constexpr const char* kName = "QuantizedLinear_v1";
  static constexpr OrtElementType kInputs[] = {ORT_FLOAT, ORT_INT8, ORT_FLOAT};
  static constexpr OrtElementType kOutputs[] = {ORT_FLOAT};

  RowLinear(const Ort& ort, const OrtKernelInfo* info)
      : QuantizedLinearOp(ort, info, WeightOrder::rows, RowSource::plain, false, false) {}
};

// Weights in panels.
template <RowSource kSource, bool kBias, bool kResidual>
class PanelLinearForm : public QuantizedLinearOp {
 public:
  static constexpr const char* kNames[3][2][2] = {
      {{"PanelLinear_v1", "PanelLinearResidual_v1"},
       {"PanelLinearBias_v1", "PanelLinearBiasResidual_v1"}},
      {{"NormPanelLinear_v1", "NormPanelLinearResidual_v1"},
       {"NormPanelLinearBias_v1", "NormPanelLinearBiasResidual_v1"}},
      {{"SiluPanelLinear_v1", "SiluPanelLinearResidual_v1"},
       {"SiluPanelLinearBias_v1", "SiluPanelLinearBiasResidual_v1"}},
  };
  static constexpr const char* kName = kNames[static_cast<int>(kSource)][kBias][kResidual];
  static constexpr std::size_t kNumInputs = 3 + (kSource == RowSource::rms_norm) + kBias + kResidual;
  static constexpr std::array<OrtElementType, kNumInputs> kInputs = [] {
    std::array<OrtElementType, kNumInputs> types = {};
    for (std::size_t i = 0; i < kNumInputs; ++i) types[i] = i == 1 ? ORT_INT8 : ORT_FLOAT;  // 1: weight
    return types;
  }();
  static constexpr OrtElementType kOutputs[] = {ORT_FLOAT};

  PanelLinearForm(const Ort& ort, const OrtKernelInfo* info)
      : QuantizedLinearOp(ort, info, WeightOrder::panels, kSource, kBias, kResidual) {}
};

}  // namespace nanovllm
