#include "row_source.h"

#include "gated_silu.h"
#include "row_product.h"

namespace nanovllm {

const float* source_row(const RowInput& input, std::size_t num_in, std::size_t t, float* made) {
  if (input.source == RowSource::plain) return input.x + t * num_in;
  if (input.source == RowSource::rms_norm) {
    const ProductFunctions& functions = product_functions(instruction_set());
    functions.normalize(input.x + t * num_in, input.gain, num_in, input.epsilon, made);
  } else {
    const float* gate = input.x + 2 * t * num_in;
    gated_silu_row()(gate, gate + num_in, static_cast<std::int64_t>(num_in), made);
  }
  return made;
}

}  // namespace nanovllm
