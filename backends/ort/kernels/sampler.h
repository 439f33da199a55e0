// The sampler of nanovllm/sampler.py, compiled: the same steps, so the same tokens up to the rounding of its sums.
//
// In: rows of logits, how each is sampled, and one uniform number for each. Out: token ids. It knows nothing about
// requests, seeds and processors' names.
#pragma once

#include <cstddef>
#include <cstdint>

#include "parallel.h"

namespace nanovllm {

// SAMPLING_ROW of nanovllm/batch.py, byte for byte.
struct SamplingRow {
  float temperature;   // 0 = greedy
  std::int32_t top_k;  // 0 = off
  float top_p;         // 1 = off
  float min_p;         // 0 = off
  std::uint64_t seed;  // not read: `uniforms` were made from it
};
static_assert(sizeof(SamplingRow) == 24, "SAMPLING_ROW has no padding");

// One token id for each row of `logits` (num_rows, vocab_size), vocab_size in 1 .. 2 ** 31 - 1. `uniforms`: in [0, 1).
//
// A greedy row gives what numpy.argmax does: the first NaN, else the first of the largest. A random row whose largest
// logit is not finite has no distribution; its token is the reference's, the last id with the largest logit (with a NaN
// anywhere: the last id). May throw std::bad_alloc before anything has been written.
void draw(const float* logits, std::size_t num_rows, std::size_t vocab_size, const SamplingRow* rows,
          const double* uniforms, std::int64_t* token_ids, const Parallel& parallel,
          std::size_t num_workers);

}  // namespace nanovllm
