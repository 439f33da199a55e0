// The rows that a quantized product quantizes: those of its input, or what is made of them (export/fused_linear.py).
#pragma once

#include <cstddef>

namespace nanovllm {

// What becomes of a row before it is quantized.
enum class RowSource { plain, rms_norm, gated_silu };

struct RowInput {
  const float* x;  // (num_rows, num_in), for gated_silu (num_rows, 2 * num_in): gate before up
  RowSource source = RowSource::plain;
  const float* gain = nullptr;  // (num_in,), of rms_norm
  float epsilon = 0;
};

// Row t, num_in numbers: in x itself, or made in `made`. That of gated_silu depends on the instruction set, too.
const float* source_row(const RowInput& input, std::size_t num_in, std::size_t t, float* made);

}  // namespace nanovllm
