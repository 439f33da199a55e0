// The operators nanovllm::BlockLinear_v1 and its fused forms, as export/block_linear.py and export/fused_linear.py state
// their contracts.
#pragma once

#include <array>

#include "custom_op.h"
#include "product_neighbours.h"

namespace nanovllm {

// What all forms do. Inputs: x, weight, weight_scale, then of the norm's gain, bias and residual those that there are.
class BlockLinearOp {
 public:
  void compute(OrtKernelContext* context) const;

 protected:
  BlockLinearOp(const Ort& ort, const OrtKernelInfo* info, RowSource source, bool has_bias, bool has_residual);

 private:
  const Ort& ort_;
  NeighbourInputs neighbours_;
  std::int64_t num_out_ = 0, num_in_ = 0, bits_ = 0;
};

// BlockLinear_v1 itself, whose bias may be missing, is the form with nothing but a bias.
template <RowSource kSource, bool kBias, bool kResidual>
class BlockLinearForm : public BlockLinearOp {
 public:
  static constexpr bool kIsPlain = kSource == RowSource::plain && !kResidual;
  static_assert(kBias || !kIsPlain, "BlockLinear_v1 has the bias among its inputs");
  static constexpr const char* kNames[3][2][2] = {
      {{nullptr, "BlockLinearResidual_v1"}, {"BlockLinear_v1", "BlockLinearBiasResidual_v1"}},
      {{"NormBlockLinear_v1", "NormBlockLinearResidual_v1"},
       {"NormBlockLinearBias_v1", "NormBlockLinearBiasResidual_v1"}},
      {{"SiluBlockLinear_v1", "SiluBlockLinearResidual_v1"},
       {"SiluBlockLinearBias_v1", "SiluBlockLinearBiasResidual_v1"}},
  };
  static constexpr const char* kName = kNames[static_cast<int>(kSource)][kBias][kResidual];
  static constexpr std::size_t kNumInputs = 3 + (kSource == RowSource::rms_norm) + kBias + kResidual;
  static constexpr std::size_t kNumRequired = kNumInputs - kIsPlain;
  static constexpr std::array<OrtElementType, kNumInputs> kInputs = [] {
    std::array<OrtElementType, kNumInputs> types = {};
    for (std::size_t i = 0; i < kNumInputs; ++i) types[i] = i == 1 ? ORT_UINT8 : ORT_FLOAT;  // 1: weight
    return types;
  }();
  static constexpr OrtElementType kOutputs[] = {ORT_FLOAT};

  BlockLinearForm(const Ort& ort, const OrtKernelInfo* info) : BlockLinearOp(ort, info, kSource, kBias, kResidual) {}
};

}  // namespace nanovllm
