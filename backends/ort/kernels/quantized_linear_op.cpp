#include "quantized_linear_op.h"

namespace nanovllm {
namespace {

enum Input { x, weight, weight_scale, num_required };

}  // namespace

QuantizedLinearOp::QuantizedLinearOp(const Ort& ort, const OrtKernelInfo* info, RowSource source, bool has_bias,
                                     bool has_residual)
    : ort_(ort), source_(source), has_bias_(has_bias), has_residual_(has_residual), row_sums_(ort, info, weight) {
  if (source == RowSource::rms_norm) require(ort.attribute(info, "epsilon", &epsilon_));
}

void QuantizedLinearOp::compute(OrtKernelContext* context) const {
  const Tensor in[] = {input_of(ort_, context, x), input_of(ort_, context, weight),
                       input_of(ort_, context, weight_scale)};
  const std::int64_t num_rows = in[x].dims[0], num_out = in[weight].dims[0], num_in = in[weight].dims[1];
  const std::int64_t width = source_ == RowSource::gated_silu ? 2 * num_in : num_in;
  require(in[x].rank == 2 && in[weight].rank == 2 && in[weight_scale].rank == 1 && in[x].dims[1] == width &&
              in[weight_scale].dims[0] == num_out,
          "QuantizedLinear: x must be (T, K), or (T, 2 K) where it is gated, weight (N, K) and weight_scale (N,)");
  std::size_t next = num_required;
  const auto vector_of = [&](std::int64_t size) {
    const Tensor tensor = input_of(ort_, context, next++);
    require(tensor.rank == 1 && tensor.dims[0] == size, "QuantizedLinear: gain must be (K,) and bias (N,)");
    return tensor.as<float>();
  };
  Tensor shape = in[x];
  shape.dims[1] = num_out;
  QuantizedLayer layer = {in[x].as<float>(), num_rows, num_in, in[weight].as<std::int8_t>(),
                          in[weight_scale].as<float>(), nullptr, num_out,
                          output_of(ort_, context, 0, shape).as<float>(), source_};
  layer.epsilon = epsilon_;
  if (source_ == RowSource::rms_norm) layer.gain = vector_of(num_in);
  if (has_bias_) layer.bias = vector_of(num_out);
  if (has_residual_) {
    const Tensor residual = input_of(ort_, context, next);
    require(residual.rank == 2 && residual.dims == shape.dims, "QuantizedLinear: residual must be (T, N)");
    layer.residual = residual.as<float>();
  }
  if (num_rows == 0) return;  // the weight is not even looked at
  const SessionThreads threads(ort_, context);
  row_sums_.with(in[weight], threads, [&](const std::int32_t* sums) {
    layer.weight_row_sums = sums;
    quantized_linear(layer, threads);
  });
}

}  // namespace nanovllm
