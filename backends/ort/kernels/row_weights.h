// What the sampler does with many logits at once: one table of functions for each instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "instruction_set.h"

namespace nanovllm {

// weight(x) = exp((x - max) / temperature), in double precision: 1 for the largest logit, 0 for minus infinity.
struct Softmax {
  double max;
  double temperature;
};

// Which weights are told apart: those below `keep` count as zero, those from `high` on are summed by block, those
// between, low <= weight < high, are listed. 0 < keep <= low; high >= keep.
struct Bracket {
  double keep;
  double low;
  double high;
};

constexpr std::size_t kBlock = 1024;      // logits that share one sum
constexpr std::size_t kListSlack = 8;     // doubles past its end that a list of weights must have room for
constexpr std::size_t kNumColumns = 16;   // see column_maxima
constexpr std::size_t kColumnHeight = 32;

struct RowFunctions {
  // The largest of n >= 1 logits; NaN where one of them is NaN.
  float (*largest)(const float* logits, std::size_t n);

  // The largest of each of several disjoint sets of 32 logits that together are the first so many of n: of what stands
  // in one of 16 columns over 32 lines. Returns how many sets there are, 16 * (n / 512).
  std::size_t (*column_maxima)(const float* logits, std::size_t n, float* maxima);

  // Copies the logits that are at least `floor`, in order, with their indices, until there are `capacity` of them.
  // Returns how many there are, at most `capacity`.
  std::size_t (*gather)(const float* logits, std::size_t n, float floor, std::size_t capacity, float* found,
                        std::int32_t* indices);

  // The weights of n logits.
  void (*weigh)(const float* logits, std::size_t n, const Softmax& softmax, double* weights);

  // The weights of n logits, not stored but summed. block_sums[b]: those of block b that are at least bracket.high.
  // listed: those between, in order (with room for kListSlack more); those of block b end at listed_ends[b]. Returns
  // the sum of all that are at least bracket.keep.
  double (*sum)(const float* logits, std::size_t n, const Softmax& softmax, const Bracket& bracket, double* block_sums,
                double* listed, std::size_t* listed_ends);

  // Parts n weights in two: those that are at least `pivot` go to `upper` (with room for kListSlack more), the others
  // move to the front of `weights`; both keep their order. Returns the sum of the upper ones.
  double (*split)(double* weights, std::size_t n, double pivot, double* upper, std::size_t* num_upper);
};

const RowFunctions& row_functions(InstructionSet set);

}  // namespace nanovllm
