// The functions of row_product.h in plain C++, the common parts of the others, and the choice.

#include "row_product.h"

#include "row_product_parts.h"

namespace nanovllm {

const ProductFunctions& avx2_product_functions();
const ProductFunctions& vnni_product_functions();

namespace {

float quantize(const float* x, std::size_t n, std::uint8_t* row) { return quantize_row(x, n, row); }

void normalize(const float* x, const float* gain, std::size_t n, float epsilon, float* output) {
  normalize_row(x, gain, n, epsilon, output);
}

void multiply(const Product& product, Span outputs) {
  for (std::size_t n = outputs.begin; n < outputs.end; ++n) {
    const std::int8_t* weight = product.weight + n * product.num_in;
    for (std::size_t t = 0; t < product.num_rows; ++t) {
      const std::uint8_t* row = product.rows + t * product.stride;
      std::uint32_t sum = 0;  // may wrap around; what finish() takes off brings it back
      for (std::size_t k = 0; k < product.num_in; ++k) sum += static_cast<std::uint32_t>(row[k] * weight[k]);
      product.output[t * product.num_out + n] = finish(product, t, n, sum);
    }
  }
}

void multiply_panels(const Product& product, Span outputs, Span rows) {
  for (std::size_t first = outputs.begin; first < outputs.end; first += kPanelOutputs) {
    for (std::size_t t = rows.begin; t < rows.end; ++t) {
      const std::uint8_t* row = product.rows + t * product.stride;
      const std::int8_t* weight = product.weight + first * product.num_in;
      std::uint32_t sums[kPanelOutputs] = {};  // may wrap around, likewise
      for (std::size_t k = 0; k < product.num_in; k += kPanelInputs)
        for (std::size_t n = 0; n < kPanelOutputs; ++n)
          for (std::size_t i = 0; i < kPanelInputs; ++i) sums[n] += static_cast<std::uint32_t>(row[k + i] * *weight++);
      for (std::size_t n = 0; n < kPanelOutputs; ++n)
        product.output[t * product.num_out + first + n] = finish(product, t, first + n, sums[n]);
    }
  }
}

constexpr ProductFunctions kScalar{quantize, multiply, nullptr, 0, multiply_panels, normalize};

}  // namespace

const ProductFunctions& product_functions(InstructionSet set) {
#if defined(__x86_64__)
  if (set == InstructionSet::avx512 && __builtin_cpu_supports("avx512vnni")) return vnni_product_functions();
  if (set != InstructionSet::scalar) return avx2_product_functions();
#endif
  return kScalar;
}

}  // namespace nanovllm
