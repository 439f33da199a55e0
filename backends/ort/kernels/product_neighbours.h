// What a node joins with its product (export/fused_linear.py): the inputs that are read before and added after.
#pragma once

#include "custom_op.h"
#include "row_source.h"

namespace nanovllm {

// The inputs of a call; bias and residual are null where they are not there.
struct Neighbours {
  RowInput input;
  const float* bias;
  const float* residual;
};

// Which of them a node has. Its inputs are x, two of weights, then the norm's gain, the bias and the residual.
class NeighbourInputs {
 public:
  NeighbourInputs(const Ort& ort, const OrtKernelInfo* info, RowSource source, bool has_bias, bool has_residual)
      : ort_(ort), source_(source), has_bias_(has_bias), has_residual_(has_residual) {
    if (source == RowSource::rms_norm) require(ort.attribute(info, "epsilon", &epsilon_));
  }

  // x: the first input. Throws KernelError where a shape does not fit. A bias that is declared optional may be missing.
  Neighbours of(const OrtKernelContext* context, const Tensor& x, std::int64_t num_in, std::int64_t num_out) const {
    const std::int64_t width = source_ == RowSource::gated_silu ? 2 * num_in : num_in;
    require(x.rank == 2 && x.dims[1] == width, "linear layer: x must be (T, K), or (T, 2 K) where it is gated");
    Neighbours found{{x.as<float>(), source_, nullptr, epsilon_}, nullptr, nullptr};
    std::size_t next = kNumFirst;
    if (source_ == RowSource::rms_norm) {
      const Tensor gain = input_of(ort_, context, next++);
      require(gain.rank == 1 && gain.dims[0] == num_in, "linear layer: gain must be (K,)");
      found.input.gain = gain.as<float>();
    }
    if (has_bias_) {
      const Tensor bias = optional_input_of(ort_, context, next++);
      require(bias.data == nullptr || (bias.rank == 1 && bias.dims[0] == num_out), "linear layer: bias must be (N,)");
      found.bias = bias.as<float>();
    }
    if (has_residual_) {
      const Tensor residual = input_of(ort_, context, next++);
      require(residual.rank == 2 && residual.dims[0] == x.dims[0] && residual.dims[1] == num_out,
              "linear layer: residual must be (T, N)");
      found.residual = residual.as<float>();
    }
    return found;
  }

 private:
  static constexpr std::size_t kNumFirst = 3;
  const Ort& ort_;
  RowSource source_;
  bool has_bias_, has_residual_;
  float epsilon_ = 0;
};

}  // namespace nanovllm
