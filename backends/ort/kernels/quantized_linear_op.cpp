#include "quantized_linear_op.h"

namespace nanovllm {
namespace {

enum Input { x, weight, weight_scale, num_required };

// For what is done once, when a session is made and no step runs.
class CallerThread final : public Parallel {
 public:
  void run(std::size_t count, void (*task)(void*, std::size_t), void* data) const override {
    for (std::size_t i = 0; i < count; ++i) task(data, i);
  }
};

std::vector<std::int32_t> sums_of(const Tensor& weight, const Parallel& parallel) {
  return weight_row_sums(weight.as<std::int8_t>(), weight.dims[0], weight.dims[1], parallel);
}

}  // namespace

QuantizedLinearOp::QuantizedLinearOp(const Ort& ort, const OrtKernelInfo* info, RowSource source, bool has_bias,
                                     bool has_residual)
    : ort_(ort), source_(source), has_bias_(has_bias), has_residual_(has_residual) {
  if (source == RowSource::rms_norm) require(ort.attribute(info, "epsilon", &epsilon_));
  int is_constant = 0;
  const OrtValue* value = nullptr;
  require(ort.constant_input(info, weight, &is_constant, &value));
  if (is_constant != 0 && value != nullptr) row_sums_ = sums_of(tensor_of(ort, value), CallerThread());
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
                          in[weight_scale].as<float>(), row_sums_.data(), num_out,
                          output_of(ort_, context, 0, shape).as<float>(), source_};
  layer.epsilon = epsilon_;
  if (source_ == RowSource::rms_norm) layer.gain = vector_of(num_in);
  if (has_bias_) layer.bias = vector_of(num_out);
  if (has_residual_) {
    const Tensor residual = input_of(ort_, context, next);
    require(residual.rank == 2 && residual.dims == shape.dims, "QuantizedLinear: residual must be (T, N)");
    layer.residual = residual.as<float>();
  }
  const SessionThreads threads(ort_, context);
  std::vector<std::int32_t> computed;
  if (row_sums_.empty()) {
    computed = sums_of(in[weight], threads);
    layer.weight_row_sums = computed.data();
  }
  quantized_linear(layer, threads);
}

}  // namespace nanovllm
