// Each of these calls one kernel on random arrays that have exactly the size that it may touch, for sanitizers to
// watch, and says what was wrong with what it gave: nothing where it was right. i: which call of a run it is.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <string>

std::string call_attention(std::mt19937& random, int i);
std::string call_block_linear(std::mt19937& random, int i);
std::string call_gated_silu(std::mt19937& random, int i);
std::string call_greedy_head(std::mt19937& random, int i);
std::string call_quantized_linear(std::mt19937& random, int i);
std::string call_sampler(std::mt19937& random, int i);

template <typename T>
using Array = std::unique_ptr<T[]>;  // exact, unlike std::vector, whose growth would hide reads behind its end

inline Array<float> numbers(std::mt19937& random, std::int64_t count) {
  Array<float> result(new float[count]);
  for (std::int64_t i = 0; i < count; ++i) result[i] = std::normal_distribution<float>()(random);
  return result;
}
