#include "quantized_linear_op.h"

#include "quantized_linear.h"

namespace nanovllm {
namespace {

enum Input { x, weight, weight_scale };

}  // namespace

QuantizedLinearOp::QuantizedLinearOp(const Ort& ort, const OrtKernelInfo* info)
    : ort_(ort), row_sums_(ort, info, weight) {}

void QuantizedLinearOp::compute(OrtKernelContext* context) const {
  const Tensor in[] = {input_of(ort_, context, x), input_of(ort_, context, weight),
                       input_of(ort_, context, weight_scale)};
  require(in[x].rank == 2 && in[weight].rank == 2 && in[weight_scale].rank == 1 && in[x].dims[1] == in[weight].dims[1] &&
              in[weight_scale].dims[0] == in[weight].dims[0],
          "QuantizedLinear_v1: x must be (T, K), weight (N, K) and weight_scale (N,)");
  Tensor shape = in[x];
  shape.dims[1] = in[weight].dims[0];
  const Tensor output = output_of(ort_, context, 0, shape);
  if (in[x].dims[0] == 0) return;  // the weight is not even looked at
  const SessionThreads threads(ort_, context);
  row_sums_.with(in[weight], threads, [&](const std::int32_t* sums) {
    quantized_linear(in[x].as<float>(), in[x].dims[0], in[x].dims[1], in[weight].as<std::int8_t>(),
                     in[weight_scale].as<float>(), sums, in[weight].dims[0], output.as<float>(), threads);
  });
}

}  // namespace nanovllm
