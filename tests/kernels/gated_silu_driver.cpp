// Calls GatedSilu on random shapes with memory of exactly the size that it may touch; for sanitizers.
//
//     driver NUM_SHAPES        prints "set S: NUM_SHAPES shapes" for each instruction set of this processor

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "gated_silu.h"
#include "instruction_set.h"
#include "row_threads.h"

namespace {

bool agrees(std::mt19937& random, std::int64_t num_rows, std::int64_t size) {
  std::normal_distribution<float> normal(0, 8);
  std::vector<float> gate_up(2 * num_rows * size), output(num_rows * size);
  for (float& value : gate_up) value = normal(random);
  nanovllm::gated_silu(gate_up.data(), num_rows, size, output.data(), nanovllm::SpawnedThreads(2));
  for (std::int64_t t = 0; t < num_rows; ++t) {
    for (std::int64_t i = 0; i < size; ++i) {
      const double gate = gate_up[2 * t * size + i], up = gate_up[(2 * t + 1) * size + i];
      const double exact = gate / (1 + std::exp(-gate)) * up;
      if (!(std::abs(output[t * size + i] - exact) <= 1e-6 * std::abs(gate * up))) return false;
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
      const std::int64_t size = 1 + random() % (i % 5 == 0 ? 9000 : 100);
      if (!agrees(random, random() % 8, size)) return std::printf("set %d: wrong\n", set), 1;
    }
    std::printf("set %d: %d shapes\n", set, num_shapes);
  }
}
