#include "quantized_linear_op.h"

namespace nanovllm {
namespace {

enum Input { x, weight, weight_scale };

}  // namespace

QuantizedLinearOp::QuantizedLinearOp(const Ort& ort, const OrtKernelInfo* info, RowSource source, bool has_bias,
                                     bool has_residual)
    : ort_(ort), neighbours_(ort, info, source, has_bias, has_residual), row_sums_(ort, info, weight) {}

void QuantizedLinearOp::compute(OrtKernelContext* context) const {
  const Tensor in[] = {input_of(ort_, context, x), input_of(ort_, context, weight),
                       input_of(ort_, context, weight_scale)};
  const std::int64_t num_rows = in[x].dims[0], num_out = in[weight].dims[0], num_in = in[weight].dims[1];
  require(in[weight].rank == 2 && in[weight_scale].rank == 1 && in[weight_scale].dims[0] == num_out,
          "QuantizedLinear: weight must be (N, K) and weight_scale (N,)");
  const Neighbours joined = neighbours_.of(context, in[x], num_in, num_out);
  Tensor shape = in[x];
  shape.dims[1] = num_out;
  QuantizedLayer layer = {joined.input, num_rows, num_in, in[weight].as<std::int8_t>(), in[weight_scale].as<float>(),
                          nullptr, num_out, output_of(ort_, context, 0, shape).as<float>(), joined.bias,
                          joined.residual};
  if (num_rows == 0) return;  // the weight is not even looked at
  const SessionThreads threads(ort_, context);
  row_sums_.with(in[weight], threads, [&](const std::int32_t* sums) {
    layer.weight_row_sums = sums;
    quantized_linear(layer, threads);
  });
}

}  // namespace nanovllm
