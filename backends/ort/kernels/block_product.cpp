// The functions of block_product.h in plain C++, and the choice.

#include "block_product.h"

#include "block_product_parts.h"

namespace nanovllm {

const BlockFunctions& avx2_block_functions(int bits);
const BlockFunctions& vnni_block_functions(int bits);

namespace {

template <int kBits>
void quantize(const float* x, std::size_t n, std::int8_t* row, float* scale, std::int32_t* offset) {
  quantize_blocks<kBits>(x, n, row, scale, offset);
}

template <int kBits>
std::int32_t sum_of(const std::int8_t* row, const std::uint8_t* weight, std::int32_t sum) {
  for (std::size_t k = 0; k < kBlock; ++k) {
    const int integer = kBits == 8 ? weight[k] : weight[k / 2] >> (k % 2 * 4) & 15;
    sum += row[place_of<kBits>(k)] * integer;
  }
  return sum;
}

template <int kBits>
void multiply(const BlockProduct& product, Span outputs) {
  for (std::size_t n = outputs.begin; n < outputs.end; ++n) {
    for (std::size_t t = 0; t < product.num_rows; ++t) {
      float total = 0;
      for (std::size_t b = 0; b < product.num_blocks; ++b) {
        const std::size_t at = t * product.num_blocks + b, weight_at = n * product.num_blocks + b;
        const std::int32_t sum = sum_of<kBits>(product.rows + at * kBlock,
                                               product.weight + weight_at * kBlockBytes<kBits>, product.row_offset[at]);
        total += static_cast<float>(sum) * (product.weight_scale[weight_at] * product.row_scale[at]);
      }
      if (product.bias != nullptr) total += product.bias[n];
      if (product.residual != nullptr) total += product.residual[t * product.num_out + n];
      product.output[t * product.num_out + n] = total;
    }
  }
}

template <int kBits>
constexpr BlockFunctions kScalar{quantize<kBits>, multiply<kBits>, nullptr, 0};

}  // namespace

const BlockFunctions& block_functions(InstructionSet set, int bits) {
#if defined(__x86_64__)
  if (set == InstructionSet::avx512 && __builtin_cpu_supports("avx512vnni")) return vnni_block_functions(bits);
  if (set != InstructionSet::scalar) return avx2_block_functions(bits);
#endif
  return bits == 4 ? kScalar<4> : kScalar<8>;
}

}  // namespace nanovllm
