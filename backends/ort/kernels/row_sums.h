// The sums of each output's weights, which the 8-bit product needs, computed when they are first asked for: a table that only
// some steps read is not read at load.
#pragma once

#include <mutex>
#include <vector>

#include "custom_op.h"
#include "quantized_linear.h"

namespace nanovllm {

class RowSums {
 public:
  // Of the input number `index` of a node. A weight that is no part of the model may change from call to call.
  RowSums(const Ort& ort, const OrtKernelInfo* info, std::size_t index, WeightOrder order = WeightOrder::rows)
      : order_(order) {
    int is_constant = 0;
    const OrtValue* value = nullptr;
    require(ort.constant_input(info, index, &is_constant, &value));
    is_constant_ = is_constant != 0 && value != nullptr;
  }

  // Calls use(sums) with those of `weight`, num_out * num_in of int8. May be called by several threads.
  template <class Use>
  void with(const std::int8_t* weight, std::int64_t num_out, std::int64_t num_in, const Parallel& parallel,
            Use&& use) const {
    const auto compute = [&] { return weight_row_sums(weight, num_out, num_in, parallel, order_); };
    if (!is_constant_) return use(compute().data());
    std::call_once(once_, [&] { sums_ = compute(); });
    use(sums_.data());
  }

 private:
  WeightOrder order_;
  bool is_constant_ = false;
  mutable std::once_flag once_;
  mutable std::vector<std::int32_t> sums_;
};

}  // namespace nanovllm
