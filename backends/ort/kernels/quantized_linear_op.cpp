#include "quantized_linear_op.h"

#include "quantized_linear.h"

namespace nanovllm {
namespace {

enum Input { x, weight, weight_scale };

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

QuantizedLinearOp::QuantizedLinearOp(const Ort& ort, const OrtKernelInfo* info) : ort_(ort) {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  require(ort.constant_input(info, weight, &is_constant, &value));
  if (is_constant != 0 && value != nullptr) row_sums_ = sums_of(tensor_of(ort, value), CallerThread());
}

void QuantizedLinearOp::compute(OrtKernelContext* context) const {
  const Tensor in[] = {input_of(ort_, context, x), input_of(ort_, context, weight),
                       input_of(ort_, context, weight_scale)};
  require(in[x].rank == 2 && in[weight].rank == 2 && in[weight_scale].rank == 1 && in[x].dims[1] == in[weight].dims[1] &&
              in[weight_scale].dims[0] == in[weight].dims[0],
          "QuantizedLinear_v1: x must be (T, K), weight (N, K) and weight_scale (N,)");
  Tensor shape = in[x];
  shape.dims[1] = in[weight].dims[0];
  const Tensor output = output_of(ort_, context, 0, shape);
  const SessionThreads threads(ort_, context);
  std::vector<std::int32_t> computed;
  if (row_sums_.empty()) computed = sums_of(in[weight], threads);
  quantized_linear(in[x].as<float>(), in[x].dims[0], in[x].dims[1], in[weight].as<std::int8_t>(),
                   in[weight_scale].as<float>(), (row_sums_.empty() ? computed : row_sums_).data(), in[weight].dims[0],
                   output.as<float>(), threads);
}

}  // namespace nanovllm
