// `nanovllm::GatedSilu_v1` (contract: export/gated_silu.py) on the host's threads.
#pragma once

#include <cstdint>

#include "parallel.h"

namespace nanovllm {

// output (num_rows, size) of gate_up (num_rows, 2 * size), both row after row. Any size, 0 too. An element's result
// depends on its own two inputs and on the instruction set, on nothing else.
void gated_silu(const float* gate_up, std::int64_t num_rows, std::int64_t size, float* output,
                const Parallel& parallel);

// One row, for each instruction set; they differ by rounding. The ones with AVX exist on x86-64 only.
using GatedSiluRow = void (*)(const float* gate, const float* up, std::int64_t size, float* output);
GatedSiluRow gated_silu_row();  // the one in use
GatedSiluRow gated_silu_row_scalar();
GatedSiluRow gated_silu_row_avx2();
GatedSiluRow gated_silu_row_avx512();

}  // namespace nanovllm
