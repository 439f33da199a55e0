#include "sampler.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "instruction_set.h"
#include "row_nucleus.h"
#include "row_threads.h"
#include "row_weights.h"

namespace nanovllm {
namespace {

constexpr double kSmallest = std::numeric_limits<double>::denorm_min();
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::size_t kListAll = 4096;  // so few weights are all listed, without a guess

// Memory that one worker uses for row after row. Not initialized: most rows touch little of it.
struct Scratch {
  explicit Scratch(std::size_t vocab_size)
      : logits(new float[vocab_size]),
        ids(new std::int32_t[vocab_size]),
        sorted(new float[vocab_size]),
        block_sums(new double[vocab_size / kBlock + 1]),
        listed(new double[vocab_size + kListSlack]),
        spare(new double[vocab_size + kListSlack]),
        selection(new double[vocab_size + kListSlack]),
        listed_ends(new std::size_t[vocab_size / kBlock + 1]) {}

  std::unique_ptr<float[]> logits;     // those that can be drawn at all, where some were left out
  std::unique_ptr<std::int32_t[]> ids;  // and what they are
  std::unique_ptr<float[]> sorted;
  std::unique_ptr<double[]> block_sums;
  std::unique_ptr<double[]> listed, spare, selection;
  std::unique_ptr<std::size_t[]> listed_ends;
  NucleusGuess guess;
};

// One row that is drawn at random: logits that may stand for a part of the vocabulary.
struct Choice {
  const float* logits;
  std::size_t n;
  const std::int32_t* ids;  // null: logit i is that of token i
  Softmax softmax;
  double keep;  // smaller weights have been dropped; above 0
};

std::size_t first_largest(const RowFunctions& rows, const float* logits, std::size_t n) {
  constexpr std::size_t kStep = 4096;  // found again in the first-level cache
  float largest = -std::numeric_limits<float>::infinity();
  std::size_t start = 0;
  for (std::size_t i = 0; i < n; i += kStep) {
    const float here = rows.largest(logits + i, std::min(kStep, n - i));
    if (std::isnan(here)) return std::find_if(logits + i, logits + n, [](float x) { return x != x; }) - logits;
    if (here > largest) largest = here, start = i;
  }
  return std::find(logits + start, logits + n, largest) - logits;
}

std::size_t last_of(const float* logits, std::size_t n, float largest) {
  std::size_t i = n - 1;
  while (i > 0 && !std::isnan(largest) && logits[i] != largest) --i;
  return i;
}

// A float below every logit whose weight could equal that of `logit`: subtraction, division and exponential round.
float below_equals(double logit, const Softmax& softmax) {
  const double slack = 1e-14 * (std::fabs(logit) + std::fabs(softmax.max) + softmax.temperature);
  const double floor = std::max(logit - slack, -double{std::numeric_limits<float>::max()});
  return std::nextafter(static_cast<float>(floor), -std::numeric_limits<float>::infinity());
}

// The k-th largest of n logits, 1 <= k <= n; or something not above it, where that is found sooner.
float near_kth_largest(const RowFunctions& rows, const float* logits, std::size_t n, std::size_t k, float* sorted) {
  const bool enough = k <= kNumColumns * (n / (kNumColumns * kColumnHeight));  // sets: k of them have one so large
  const std::size_t count = enough ? rows.column_maxima(logits, n, sorted) : n;
  if (!enough) std::copy(logits, logits + n, sorted);
  std::nth_element(sorted, sorted + (k - 1), sorted + count, std::greater<float>());
  return sorted[k - 1];
}

// The logits that min_p and top_k leave, and perhaps more; and the weight below which they drop.
Choice filtered(const RowFunctions& rows, const float* logits, std::size_t n, const SamplingRow& row,
                const Softmax& softmax, Scratch& scratch) {
  Choice choice{logits, n, nullptr, softmax, std::clamp(double{row.min_p}, kSmallest, 1.0)};
  const std::size_t k = row.top_k > 0 && static_cast<std::size_t>(row.top_k) < n ? row.top_k : 0;
  double floor = -kInfinity;
  if (choice.keep > kSmallest) floor = softmax.max + softmax.temperature * std::log(choice.keep);
  if (k > 0) floor = std::max<double>(floor, near_kth_largest(rows, logits, n, k, scratch.sorted.get()));
  if (floor == -kInfinity) return choice;
  choice.n = rows.gather(logits, n, below_equals(floor, softmax), n, scratch.logits.get(), scratch.ids.get());
  choice.logits = scratch.logits.get();
  choice.ids = scratch.ids.get();
  if (k > 0 && k <= choice.n) {  // fewer are left where min_p has dropped more
    float* sorted = std::copy(choice.logits, choice.logits + choice.n, scratch.sorted.get()) - choice.n;
    std::nth_element(sorted, sorted + (k - 1), sorted + choice.n, std::greater<float>());
    double kth;
    rows.weigh(sorted + (k - 1), 1, softmax, &kth);
    choice.keep = std::max(choice.keep, kth);
  }
  return choice;
}

double sum_at_least(const double* weights, std::size_t n, double floor) {
  double sums[4] = {};  // independent of each other, so that no addition waits for the one before
  std::size_t i = 0;
  for (; i + 4 <= n; i += 4)
    for (std::size_t j = 0; j < 4; ++j) sums[j] += weights[i + j] >= floor ? weights[i + j] : 0.0;
  for (; i < n; ++i) sums[0] += weights[i] >= floor ? weights[i] : 0.0;
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// Sums the weights that `choice` keeps, of the nucleus of top_p only, by block. Returns the smallest weight in it.
double sum_nucleus(const RowFunctions& rows, const Choice& choice, double top_p, Scratch& scratch) {
  const std::size_t num_blocks = (choice.n + kBlock - 1) / kBlock;
  double* block_sums = scratch.block_sums.get();
  double* listed = scratch.listed.get();
  std::size_t* listed_ends = scratch.listed_ends.get();
  const auto sum = [&](const WeightRange& range) {
    return rows.sum(choice.logits, choice.n, choice.softmax, {choice.keep, range.low, range.high}, block_sums, listed,
                    listed_ends);
  };
  const auto try_range = [&](const WeightRange& range) -> NucleusEnd {
    const double target = std::max(top_p * sum(range), kSmallest);
    const double above = std::accumulate(block_sums, block_sums + num_blocks, 0.0);
    const std::size_t num_listed = listed_ends[num_blocks - 1];
    if (above >= target || num_listed == 0) return {0, false};
    std::copy(listed, listed + num_listed, scratch.selection.get());
    return end_of_nucleus(rows, scratch.selection.get(), scratch.spare.get(), num_listed, range, above, target);
  };

  if (!(top_p < 1)) {
    sum({choice.keep, choice.keep});
    return choice.keep;
  }
  NucleusEnd end{0, false};
  if (choice.n > kListAll) {
    WeightRange range = scratch.guess(rows, choice.logits, choice.n, choice.softmax, choice.keep, top_p);
    range.low = std::max(range.low, choice.keep);
    end = try_range(range);
  }
  if (!end.reached) end = try_range({choice.keep, kAboveAll});
  for (std::size_t block = 0, i = 0; block < num_blocks; ++block) {
    block_sums[block] += sum_at_least(listed + i, listed_ends[block] - i, end.smallest);
    i = listed_ends[block];
  }
  return end.smallest;
}

// The first logit whose running sum of weights that are at least `smallest` exceeds `uniform` times their sum.
std::size_t pick(const RowFunctions& rows, const Choice& choice, double smallest, double uniform,
                 const double* block_sums) {
  const std::size_t num_blocks = (choice.n + kBlock - 1) / kBlock;
  const double target = uniform * std::accumulate(block_sums, block_sums + num_blocks, 0.0);
  double before = 0, running = 0;
  std::size_t block = 0;  // the one with the logit; where rounding leaves none, the last that has any weight
  for (std::size_t i = 0; i < num_blocks && running <= target; ++i) {
    if (block_sums[i] > 0) block = i, before = running;
    running += block_sums[i];
  }
  const std::size_t start = block * kBlock, count = std::min(kBlock, choice.n - start);
  double weights[kBlock];
  rows.weigh(choice.logits + start, count, choice.softmax, weights);
  std::size_t picked = 0;
  running = before;
  for (std::size_t i = 0; i < count && running <= target; ++i) {
    if (weights[i] < smallest) continue;
    picked = i;
    running += weights[i];
  }
  return start + picked;
}

std::int64_t draw_row(const RowFunctions& rows, const float* logits, std::size_t n, const SamplingRow& row,
                      double uniform, Scratch& scratch) {
  if (!(row.temperature > 0)) return static_cast<std::int64_t>(first_largest(rows, logits, n));
  const float largest = rows.largest(logits, n);
  if (!std::isfinite(largest)) return static_cast<std::int64_t>(last_of(logits, n, largest));
  const Choice choice = filtered(rows, logits, n, row, {largest, row.temperature}, scratch);
  const double smallest = sum_nucleus(rows, choice, row.top_p, scratch);
  const std::size_t picked = pick(rows, choice, smallest, uniform, scratch.block_sums.get());
  return choice.ids == nullptr ? static_cast<std::int64_t>(picked) : choice.ids[picked];
}

// Rows are handed out one by one to workers, each with memory of its own.
struct Draw {
  const float* logits;
  std::size_t num_rows, vocab_size;
  const SamplingRow* rows;
  const double* uniforms;
  std::int64_t* token_ids;
  std::vector<Scratch> scratch;
  std::atomic<std::size_t> next_row{0};

  void work(std::size_t worker) {
    const RowFunctions& functions = row_functions(instruction_set());
    for (std::size_t i = next_row++; i < num_rows; i = next_row++)
      token_ids[i] =
          draw_row(functions, logits + i * vocab_size, vocab_size, rows[i], uniforms[i], scratch[worker]);
  }
};

}  // namespace

void draw(const float* logits, std::size_t num_rows, std::size_t vocab_size, const SamplingRow* rows,
          const double* uniforms, std::int64_t* token_ids, const Parallel& parallel, std::size_t num_workers) {
  Draw call{logits, num_rows, vocab_size, rows, uniforms, token_ids, {}};
  for (std::size_t i = 0; i < std::min(num_workers, num_rows); ++i) call.scratch.emplace_back(vocab_size);
  const auto work = [](void* data, std::size_t worker) { static_cast<Draw*>(data)->work(worker); };
  parallel.run(call.scratch.size(), work, &call);
}

}  // namespace nanovllm

// For ctypes. Returns 0, or 1 where memory ran out.
extern "C" __attribute__((visibility("default"))) int nanovllm_draw(
    const float* logits, std::int64_t num_rows, std::int64_t vocab_size, const nanovllm::SamplingRow* rows,
    const double* uniforms, std::int64_t* token_ids, std::int64_t num_threads) {
  constexpr std::int64_t kWorthAThread = 1 << 18;  // logits; a thread takes some 20 us to start
  const auto useful = static_cast<std::size_t>(std::max<std::int64_t>(1, num_rows * vocab_size / kWorthAThread));
  const std::size_t num_workers = std::min(useful, static_cast<std::size_t>(num_threads));
  try {
    nanovllm::draw(logits, static_cast<std::size_t>(num_rows), static_cast<std::size_t>(vocab_size), rows, uniforms,
                   token_ids, nanovllm::SpawnedThreads(num_workers), num_workers);
  } catch (const std::exception&) {
    return 1;
  }
  return 0;
}
