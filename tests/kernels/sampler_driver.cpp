// Calls the sampler on random rows with memory of exactly the size that it may touch; for sanitizers.

#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "driver.h"
#include "instruction_set.h"
#include "row_threads.h"
#include "sampler.h"

namespace {

template <class T, std::size_t n>
T one_of(std::mt19937& random, const T (&values)[n]) {
  return values[random() % n];
}

// Whether every token is one of the vocabulary.
bool draws(std::mt19937& random) {
  const std::size_t vocab_size = 1 + random() % one_of(random, {20u, 2000u, 6000u, 40000u});
  const std::size_t num_rows = 1 + random() % 4;
  std::normal_distribution<float> normal(0, one_of(random, {0.0f, 0.1f, 3.0f, 30.0f}));
  std::vector<float> logits(num_rows * vocab_size);
  for (float& logit : logits) logit = normal(random);
  const float odd = one_of(random, {-1.0f, -std::numeric_limits<float>::infinity(), 50.0f,
                                    std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()});
  for (std::size_t i = random() % 3; i < logits.size(); i += 1 + random() % 50) logits[i] = odd;
  std::vector<nanovllm::SamplingRow> rows(num_rows);
  for (nanovllm::SamplingRow& row : rows) {
    row.temperature = one_of(random, {0.0f, 1e-40f, 0.01f, 0.8f, 1.0f, 1e30f});
    row.top_k = one_of(random, {0, 0, 1, 40, 3000, 2000000000});
    row.top_p = one_of(random, {1.0f, 0.95f, 0.5f, 0.0f, 1e-30f, 0.9999999f});
    row.min_p = one_of(random, {0.0f, 0.0f, 0.05f, 1e-40f, 1.0f});
  }
  std::vector<double> uniforms(num_rows);
  for (double& uniform : uniforms) uniform = one_of(random, {0.0, 0.3, 0.7, 1 - 0x1p-53});
  std::vector<std::int64_t> token_ids(num_rows, -1);
  nanovllm::draw(logits.data(), num_rows, vocab_size, rows.data(), uniforms.data(), token_ids.data(),
                 nanovllm::SpawnedThreads(2), 2);
  for (const std::int64_t token_id : token_ids)
    if (token_id < 0 || token_id >= static_cast<std::int64_t>(vocab_size)) return false;
  return true;
}

}  // namespace

std::string call_sampler(std::mt19937& random, int) { return draws(random) ? "" : "no token of the vocabulary"; }
