#include "block_linear_op.h"

#include "block_linear.h"

namespace nanovllm {
namespace {

enum Input { x, weight, weight_scale };

constexpr std::int64_t kBlockSize = 128;

}  // namespace

BlockLinearOp::BlockLinearOp(const Ort& ort, const OrtKernelInfo* info, RowSource source, bool has_bias,
                             bool has_residual)
    : ort_(ort), neighbours_(ort, info, source, has_bias, has_residual) {
  require(ort.attribute(info, "N", &num_out_));
  require(ort.attribute(info, "K", &num_in_));
  require(ort.attribute(info, "bits", &bits_));
  require(bits_ == 4 || bits_ == 8, "BlockLinear: bits must be 4 or 8");
}

void BlockLinearOp::compute(OrtKernelContext* context) const {
  const Tensor in[] = {input_of(ort_, context, x), input_of(ort_, context, weight),
                       input_of(ort_, context, weight_scale)};
  const std::int64_t num_blocks = (num_in_ + kBlockSize - 1) / kBlockSize;
  require(in[weight].rank == 3 && in[weight].dims[0] == num_out_ && in[weight].dims[1] == num_blocks &&
              in[weight].dims[2] == kBlockSize * bits_ / 8,
          "BlockLinear: weight must be (N, blocks of K, 128 * bits / 8)");
  require(in[weight_scale].rank == 2 && in[weight_scale].dims[0] == num_out_ && in[weight_scale].dims[1] == num_blocks,
          "BlockLinear: weight_scale must be (N, blocks of K)");
  const Neighbours joined = neighbours_.of(context, in[x], num_in_, num_out_);
  Tensor shape = in[x];
  shape.dims[1] = num_out_;
  const Tensor output = output_of(ort_, context, 0, shape);
  const BlockWeights weights{in[weight].as<std::uint8_t>(), in[weight_scale].as<float>(), joined.bias, num_out_,
                             num_in_, static_cast<int>(bits_)};
  block_linear(joined.input, in[x].dims[0], weights, joined.residual, output.as<float>(),
               SessionThreads(ort_, context));
}

}  // namespace nanovllm
