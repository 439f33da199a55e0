#include "greedy_head_op.h"

#include "greedy_head.h"

namespace nanovllm {
namespace {

enum Input { x, weight, weight_scale, sketch, sketch_scale, sketch_step };

constexpr std::int64_t kBlockSize = 128;

bool has_shape(const Tensor& tensor, std::size_t rank, std::array<std::int64_t, 4> dims) {
  return tensor.rank == rank && tensor.dims == dims;
}

}  // namespace

GreedyHeadOp::GreedyHeadOp(const Ort& ort, const OrtKernelInfo* info) : ort_(ort), row_sums_(ort, info, weight) {}

void GreedyHeadOp::compute(OrtKernelContext* context) const {
  const Tensor in[] = {
      input_of(ort_, context, x), input_of(ort_, context, weight), input_of(ort_, context, weight_scale),
      optional_input_of(ort_, context, sketch), optional_input_of(ort_, context, sketch_scale),
      optional_input_of(ort_, context, sketch_step)};
  const std::int64_t num_out = in[weight].dims[0], num_in = in[weight].dims[1];
  require(in[x].rank == 2 && in[weight].rank == 2 && in[weight_scale].rank == 1 && in[x].dims[1] == num_in &&
              in[weight_scale].dims[0] == num_out && num_out > 0,
          "GreedyHead_v1: x must be (T, K), weight (N, K) and weight_scale (N,), N at least 1");
  const std::int64_t num_blocks = (num_in + kBlockSize - 1) / kBlockSize;
  require(in[sketch].data == nullptr || (has_shape(in[sketch], 3, {num_out, num_blocks, kBlockSize / 2, 1}) &&
                                         has_shape(in[sketch_scale], 2, {num_out, num_blocks, 1, 1}) &&
                                         has_shape(in[sketch_step], 1, {num_out, 1, 1, 1})),
          "GreedyHead_v1: the sketch must be (N, blocks of K, 64), its scale (N, blocks of K) and its step (N,)");
  Tensor shape;
  shape.rank = 1;
  shape.dims[0] = in[x].dims[0];
  const Tensor ids = output_of(ort_, context, 0, shape);
  const SessionThreads threads(ort_, context);
  const GreedyTable table{in[weight].as<std::int8_t>(), in[weight_scale].as<float>(), in[sketch].as<std::uint8_t>(),
                          in[sketch_scale].as<float>(), in[sketch_step].as<float>(), num_out, num_in};
  const auto all_of = [&](const auto& use) { row_sums_.with(table.weight, num_out, num_in, threads, use); };
  greedy_head(in[x].as<float>(), in[x].dims[0], table, all_of, ids.as<std::int64_t>(), threads);
}

}  // namespace nanovllm
