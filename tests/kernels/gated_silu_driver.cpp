// Calls GatedSilu on random shapes with memory of exactly the size that it may touch; for sanitizers.

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "driver.h"
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

std::string call_gated_silu(std::mt19937& random, int i) {
  const std::int64_t size = 1 + random() % (i % 5 == 0 ? 9000 : 100);
  return agrees(random, random() % 8, size) ? "" : "wrong";
}
