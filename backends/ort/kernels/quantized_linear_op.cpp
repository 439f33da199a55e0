#include "quantized_linear_op.h"

namespace nanovllm {
namespace {

enum Input { x, weight, weight_scale };

// Outputs and inputs of a weight.
struct Sizes {
  std::int64_t num_out, num_in;
};

Sizes sizes_of(const Tensor& weight, WeightOrder order) {
  if (order == WeightOrder::rows) {
    require(weight.rank == 2, "QuantizedLinear: weight must be (N, K)");
    return {weight.dims[0], weight.dims[1]};
  }
  constexpr auto kOutputs = static_cast<std::int64_t>(kPanelOutputs), kInputs = static_cast<std::int64_t>(kPanelInputs);
  require(weight.rank == 4 && weight.dims[2] == kOutputs && weight.dims[3] == kInputs,
          "PanelLinear: weight must be (N / 16, K / 4, 16, 4)");
  return {weight.dims[0] * kOutputs, weight.dims[1] * kInputs};
}

}  // namespace

QuantizedLinearOp::QuantizedLinearOp(const Ort& ort, const OrtKernelInfo* info, WeightOrder order, RowSource source,
                                     bool has_bias, bool has_residual)
    : ort_(ort),
      order_(order),
      neighbours_(ort, info, source, has_bias, has_residual),
      row_sums_(ort, info, weight, order) {}

void QuantizedLinearOp::compute(OrtKernelContext* context) const {
  const Tensor in[] = {input_of(ort_, context, x), input_of(ort_, context, weight),
                       input_of(ort_, context, weight_scale)};
  const Sizes sizes = sizes_of(in[weight], order_);
  const std::int64_t num_rows = in[x].dims[0];
  require(in[weight_scale].rank == 1 && in[weight_scale].dims[0] == sizes.num_out,
          "QuantizedLinear: weight_scale must be (N,)");
  const Neighbours joined = neighbours_.of(context, in[x], sizes.num_in, sizes.num_out);
  Tensor shape = in[x];
  shape.dims[1] = sizes.num_out;
  QuantizedLayer layer = {joined.input, num_rows, sizes.num_in, in[weight].as<std::int8_t>(),
                          in[weight_scale].as<float>(), nullptr, sizes.num_out,
                          output_of(ort_, context, 0, shape).as<float>(), joined.bias, joined.residual, order_};
  if (num_rows == 0) return;  // the weight is not even looked at
  const SessionThreads threads(ort_, context);
  row_sums_.with(layer.weight, sizes.num_out, sizes.num_in, threads, [&](const std::int32_t* sums) {
    layer.weight_row_sums = sums;
    quantized_linear(layer, threads);
  });
}

}  // namespace nanovllm
