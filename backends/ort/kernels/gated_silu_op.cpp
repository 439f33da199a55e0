#include "gated_silu_op.h"

#include "gated_silu.h"

namespace nanovllm {

void GatedSiluOp::compute(OrtKernelContext* context) const {
  const Tensor gate_up = input_of(ort_, context, 0);
  require(gate_up.rank == 2 && gate_up.dims[1] % 2 == 0, "GatedSilu_v1: gate_up must be (T, 2 F)");
  Tensor shape = gate_up;
  shape.dims[1] /= 2;
  const Tensor output = output_of(ort_, context, 0, shape);
  gated_silu(gate_up.as<float>(), shape.dims[0], shape.dims[1], output.as<float>(), SessionThreads(ort_, context));
}

}  // namespace nanovllm
