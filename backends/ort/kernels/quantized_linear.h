// `nanovllm::QuantizedLinear_v1`, `PanelLinear_v1` and its fused forms (contracts: export/quantized_linear.py,
// export/panel_linear.py, export/fused_linear.py) on the host's threads, bit for bit.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel.h"
#include "row_product.h"
#include "row_source.h"

namespace nanovllm {

// A layer and its input, all arrays but panels row after row. The weights are read as they lie: no copy of them is kept.
struct QuantizedLayer {
  RowInput input;
  std::int64_t num_rows, num_in;
  const std::int8_t* weight;            // in `order`
  const float* weight_scale;            // (num_out,)
  const std::int32_t* weight_row_sums;  // (num_out,)
  std::int64_t num_out;
  float* output;  // (num_rows, num_out), apart from all others
  const float* bias = nullptr;      // (num_out,), or null
  const float* residual = nullptr;  // (num_rows, num_out), or null
  WeightOrder order = WeightOrder::rows;
};

// The sum of each output's weights: a constant of the layer that quantized_linear needs.
std::vector<std::int32_t> weight_row_sums(const std::int8_t* weight, std::int64_t num_out, std::int64_t num_in,
                                          const Parallel& parallel, WeightOrder order = WeightOrder::rows);

// Any size, 0 too; num_in at most 133,000. A row's result depends on nothing but the row; that of gated_silu on the
// instruction set, too. May throw std::bad_alloc, also in a task.
void quantized_linear(const QuantizedLayer& layer, const Parallel& parallel);

}  // namespace nanovllm
