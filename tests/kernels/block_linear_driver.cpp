// Calls the block product on random shapes with memory of exactly the size that it may touch; for sanitizers.
//
//     driver NUM_SHAPES        prints "set S: NUM_SHAPES shapes" for each instruction set of this processor

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "block_linear.h"
#include "instruction_set.h"
#include "row_threads.h"

namespace {

constexpr std::int64_t kBlock = 128;

// Whether the kernel's values are those of the contract, summed in plain C++.
bool agrees(std::mt19937& random, std::int64_t num_rows, std::int64_t num_in, std::int64_t num_out, int bits) {
  const std::int64_t blocks = (num_in + kBlock - 1) / kBlock, block_bytes = kBlock * bits / 8;
  std::vector<float> x(num_rows * num_in), output(num_rows * num_out);
  std::vector<float> scale(num_out * blocks, 0.5f), bias(num_out, 3.0f);
  std::vector<std::uint8_t> weight(num_out * blocks * block_bytes);
  for (float& value : x) value = static_cast<float>(static_cast<int>(random() % 255) - 127);
  for (std::int64_t t = 0; t < num_rows; ++t)
    for (std::int64_t k = 0; k < num_in; k += kBlock) x[t * num_in + k] = 127;  // so that scales are 1
  for (std::uint8_t& value : weight) value = static_cast<std::uint8_t>(random());
  const bool has_bias = random() % 2 != 0;
  nanovllm::block_linear(x.data(), num_rows,
                         {weight.data(), scale.data(), has_bias ? bias.data() : nullptr, num_out, num_in, bits},
                         output.data(), nanovllm::SpawnedThreads(2));
  const float row_scale = 127.0f * static_cast<float>(1.0 / 127);
  for (std::int64_t t = 0; t < num_rows; ++t) {
    for (std::int64_t n = 0; n < num_out; ++n) {
      float total = 0;
      for (std::int64_t b = 0; b < blocks; ++b) {
        std::int32_t sum = 0;
        for (std::int64_t k = b * kBlock; k < num_in && k < (b + 1) * kBlock; ++k) {
          const std::uint8_t* row = weight.data() + n * blocks * block_bytes;
          const int integer = bits == 8 ? row[k] - 128 : (row[k / 2] >> (k % 2 * 4) & 15) - 8;
          sum += static_cast<std::int32_t>(x[t * num_in + k]) * integer;
        }
        total += static_cast<float>(sum) * (0.5f * row_scale);
      }
      if (output[t * num_out + n] != (has_bias ? total + 3.0f : total)) return false;
    }
  }
  return true;
}

}  // namespace

int main(int, char** arguments) {
  const int num_shapes = std::atoi(arguments[1]);
  for (int set = 0; set < 3; ++set) {
    if (!nanovllm::force_instruction_set(static_cast<nanovllm::InstructionSet>(set))) continue;
    std::mt19937 random(1);
    for (int i = 0; i < num_shapes; ++i) {
      const std::int64_t num_rows = 1 + random() % (i % 5 == 0 ? 200 : 30), num_in = 1 + random() % 400;
      const bool right = agrees(random, num_rows, num_in, 1 + random() % 150, i % 2 == 0 ? 4 : 8);
      if (!right) return std::printf("set %d: wrong\n", set), 1;
    }
    std::printf("set %d: %d shapes\n", set, num_shapes);
  }
}
