// Where the nucleus of top_p ends, without sorting the row: a guess from a sample, and an exact selection.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "row_weights.h"

namespace nanovllm {

// low <= weight < high.
struct WeightRange {
  double low, high;
};

constexpr double kAboveAll = 2;  // weights are at most 1

// Guesses a narrow range of weights in which the smallest weight of a row's nucleus lies. Owns the memory for it.
class NucleusGuess {
 public:
  NucleusGuess();

  // Weights below `keep` count as zero; 0 < top_p < 1. Wrong now and then: the caller has to check.
  WeightRange operator()(const RowFunctions& rows, const float* logits, std::size_t n, const Softmax& softmax,
                         double keep, double top_p);

 private:
  struct Bin {
    double mass, squares;   // sums of the weights and of their squares
    std::size_t num_weights;
  };

  std::size_t take_sample(const float* logits, std::size_t n);
  void count(const RowFunctions& rows, const float* logits, std::size_t n, const Softmax& softmax, double keep);
  WeightRange range(std::size_t num_head_bins, double multiplicity, double top_p) const;

  std::unique_ptr<float[]> logits_;
  std::unique_ptr<std::int32_t[]> ids_;
  std::unique_ptr<double[]> weights_;
  std::unique_ptr<Bin[]> bins_;
};

struct NucleusEnd {
  double smallest;  // weight in the nucleus
  bool reached;     // whether the weights given sum to the target at all
};

// The largest of n >= 1 weights, each in the range, such that it and all that are at least as large sum to `target` or
// more, `above` included; the smallest of them where their sum is less. Overwrites `weights` and `spare`, both with
// room for kListSlack more.
NucleusEnd end_of_nucleus(const RowFunctions& rows, double* weights, double* spare, std::size_t n,
                          const WeightRange& range, double above, double target);

}  // namespace nanovllm
