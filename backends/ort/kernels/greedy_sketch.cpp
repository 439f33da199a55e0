// The arg-max by way of the sketch. In units of a row's scale, with q the row's integers:
//
//     score[n]  = q . sketch row n                     of all outputs; half the bytes of the table
//     probe     = the exact value of a few outputs of the highest scores: the largest is at least that
//     candidate = an output with score[n] + kSteps * |q| * sketch_step[n] >= probe; their exact values decide
//
// export/greedy_head.py says why the largest is among the candidates.

#include <algorithm>
#include <atomic>
#include <cmath>

#include "block_product_parts.h"
#include "greedy_rows.h"
#include "parts.h"

namespace nanovllm {
namespace {

constexpr float kSteps = 4.01f;       // 4, and 0.01 for what float32 rounds off
constexpr std::size_t kPartBytes = std::size_t{1} << 17;  // of the sketch: in smaller pieces memory is read more slowly
constexpr std::size_t kTaskParts = 8;  // whose candidates are collected before they are looked up
constexpr std::size_t kProbes = 4;
constexpr std::size_t kMaxShare = 16;  // candidates are at most one output in so many
constexpr float kSmallest = 1e-30f;    // a logit of smaller magnitude may have lost bits, so that others equal it
constexpr std::size_t kLanes = 16;     // values that are looked at without a branch

// One row as the sketch and as the table take it.
struct Query {
  std::vector<std::int16_t> integers;  // (num_in,)
  float scale;
  float reach;  // kSteps * |q|
  float probe;  // the largest of the probed values, in units of `scale`
};

// Rows for the block product, in units of their scales.
struct SketchRows {
  std::size_t num_blocks;
  std::vector<std::int8_t> integers;  // (num_rows, num_blocks, kBlock)
  std::vector<float> scales;          // (num_rows, num_blocks), all 1
  std::vector<std::int32_t> offsets;  // (num_rows, num_blocks)
};

Query query_of(const QuantizedRows& rows, std::size_t t, std::size_t num_in) {
  Query query{std::vector<std::int16_t>(num_in), rows.scales[t], 0, 0};
  double squares = 0;
  for (std::size_t k = 0; k < num_in; ++k) {
    const int q = rows.integers[t * rows.stride + k] - kZero;
    query.integers[k] = static_cast<std::int16_t>(q);
    squares += q * q;
  }
  query.reach = kSteps * static_cast<float>(std::sqrt(squares));
  return query;
}

SketchRows sketch_rows(const std::vector<Query>& queries, std::size_t num_in) {
  const std::size_t blocks = num_parts(num_in, kBlock), total = queries.size() * blocks;
  SketchRows rows{blocks, std::vector<std::int8_t>(total * kBlock), std::vector<float>(total, 1.0f),
                  std::vector<std::int32_t>(total)};
  for (std::size_t t = 0; t < queries.size(); ++t) {
    for (std::size_t k = 0; k < num_in; ++k) {
      const std::size_t block = t * blocks + k / kBlock;
      rows.integers[block * kBlock + place_of<4>(k % kBlock)] = static_cast<std::int8_t>(queries[t].integers[k]);
      rows.offsets[block] -= kZeroPoint<4> * queries[t].integers[k];
    }
  }
  return rows;
}

// Asks for what exact_value() will read. Candidates lie far apart, so that one would be waited for after the other.
void prefetch_row(const GreedyTable& table, std::size_t output) {
  const auto num_in = static_cast<std::size_t>(table.num_in);
  const std::int8_t* weight = table.weight + output * num_in;
  for (std::size_t k = 0; k < num_in; k += 64) __builtin_prefetch(weight + k);
}

// What the table says of an output, in units of the query's scale.
float exact_value(const Query& query, const GreedyTable& table, std::size_t output) {
  const std::size_t num_in = query.integers.size();
  const std::int8_t* weight = table.weight + output * num_in;
  const std::int16_t* integers = query.integers.data();
  std::int32_t sum = 0;
  for (std::size_t k = 0; k < num_in; ++k) sum += integers[k] * weight[k];
  return static_cast<float>(sum) * table.weight_scale[output];
}

// All scores, and what is known of each part of the outputs.
class Scores {
 public:
  Scores(const std::vector<Query>& queries, const GreedyTable& table, const Parallel& parallel)
      : queries_(queries),
        table_(table),
        num_out_(static_cast<std::size_t>(table.num_out)),
        rows_(sketch_rows(queries, static_cast<std::size_t>(table.num_in))),
        part_outputs_((kPartBytes / (rows_.num_blocks * kBlockBytes<4> + 1) / kLanes + 1) * kLanes),
        num_parts_(nanovllm::num_parts(num_out_, part_outputs_)),
        scores_(new float[queries.size() * num_out_]),
        highest_(num_parts_ * queries.size()),
        reached_(num_parts_ * queries.size()) {
    run_parts(parallel, num_parts_, [this](std::size_t index) { compute(index); });
  }

  // The outputs of the highest score in each of the kProbes parts where it is highest.
  std::vector<std::size_t> probes(std::size_t t) const {
    std::vector<Best> best;
    for (std::size_t index = 0; index < num_parts_; ++index) best.push_back(highest_[index * queries_.size() + t]);
    const std::size_t count = std::min(kProbes, best.size());
    std::partial_sort(best.begin(), best.begin() + static_cast<std::ptrdiff_t>(count), best.end(),
                      [](const Best& a, const Best& b) { return b.yields_to(a); });
    std::vector<std::size_t> outputs;
    for (std::size_t i = 0; i < count; ++i) outputs.push_back(static_cast<std::size_t>(best[i].id));
    return outputs;
  }

  std::size_t num_parts() const { return num_parts_; }

  // Adds the candidates of a part for row t to `outputs`, and asks for their rows of the table.
  void add_candidates(std::size_t index, std::size_t t, std::vector<std::size_t>& outputs) const {
    const Query& query = queries_[t];
    if (reached_[index * queries_.size() + t] < query.probe) return;
    const Span span = outputs_of(index);
    const float* scores = scores_of(index, t);
    const float* step = table_.sketch_step + span.begin;
    for (std::size_t first = 0; first < span.end - span.begin; first += kLanes) {
      const std::size_t end = std::min(first + kLanes, span.end - span.begin);
      int any = 0;
      for (std::size_t i = first; i < end; ++i) any |= !(scores[i] + query.reach * step[i] < query.probe);
      for (std::size_t i = first; any != 0 && i < end; ++i) {
        if (scores[i] + query.reach * step[i] < query.probe) continue;
        outputs.push_back(span.begin + i);
        prefetch_row(table_, span.begin + i);
      }
    }
  }

 private:
  Span outputs_of(std::size_t index) const { return part(num_out_, part_outputs_, index); }

  float* scores_of(std::size_t index, std::size_t t) const {
    const Span span = outputs_of(index);
    return scores_.get() + span.begin * queries_.size() + t * (span.end - span.begin);
  }

  void compute(std::size_t index) {
    const Span span = outputs_of(index);
    const std::size_t num_rows = queries_.size(), row_bytes = rows_.num_blocks * kBlockBytes<4>;
    const BlockProduct product{rows_.integers.data(),
                               rows_.scales.data(),
                               rows_.offsets.data(),
                               num_rows,
                               rows_.num_blocks,
                               table_.sketch + span.begin * row_bytes,
                               table_.sketch_scale + span.begin * rows_.num_blocks,
                               nullptr,
                               span.end - span.begin,
                               scores_of(index, 0)};
    block_functions(instruction_set(), 4).multiply(product, {0, product.num_out});
    for (std::size_t t = 0; t < num_rows; ++t) summarize(index, t, span);
  }

  // Notes the highest score of a part, and the highest that an exact value may reach.
  void summarize(std::size_t index, std::size_t t, Span span) {
    const std::size_t place = index * queries_.size() + t, count = span.end - span.begin;
    const float* scores = scores_of(index, t);
    const float* step = table_.sketch_step + span.begin;
    const float reach = queries_[t].reach;
    float highest[kLanes], reached[kLanes];
    std::fill(highest, highest + kLanes, Best().value);
    std::fill(reached, reached + kLanes, Best().value);
    const auto add = [&](std::size_t lane, std::size_t i) {
      const float value = scores[i] + reach * step[i];
      highest[lane] = scores[i] > highest[lane] ? scores[i] : highest[lane];
      reached[lane] = value > reached[lane] ? value : reached[lane];
    };
    std::size_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
      for (std::size_t lane = 0; lane < kLanes; ++lane) add(lane, i + lane);
    for (; i < count; ++i) add(0, i);
    const float value = *std::max_element(highest, highest + kLanes);
    const auto output = static_cast<std::size_t>(std::find(scores, scores + count, value) - scores);
    highest_[place] = {value, static_cast<std::int64_t>(span.begin + std::min(output, count - 1))};
    reached_[place] = *std::max_element(reached, reached + kLanes);
  }

  const std::vector<Query>& queries_;
  const GreedyTable& table_;
  std::size_t num_out_;
  SketchRows rows_;
  std::size_t part_outputs_, num_parts_;
  std::unique_ptr<float[]> scores_;  // part by part, (rows, outputs of the part) each
  std::vector<Best> highest_;        // (parts, rows): the highest score of each part
  std::vector<float> reached_;       // (parts, rows): the highest that a value of the part may be
};

// The best of row t; none where there are too many candidates.
Best best_candidate(const Scores& scores, const Query& query, std::size_t t, const GreedyTable& table,
                    const Parallel& parallel) {
  const std::size_t limit = static_cast<std::size_t>(table.num_out) / kMaxShare + kProbes;
  const std::size_t num_tasks = num_parts(scores.num_parts(), kTaskParts);
  std::vector<Best> bests(num_tasks);
  std::atomic<std::size_t> total{0};
  run_parts(parallel, num_tasks, [&](std::size_t index) {
    std::vector<std::size_t> candidates;
    const Span parts = part(scores.num_parts(), kTaskParts, index);
    for (std::size_t i = parts.begin; i < parts.end; ++i) scores.add_candidates(i, t, candidates);
    if ((total += candidates.size()) > limit) return;
    for (const std::size_t output : candidates)
      bests[index].consider({exact_value(query, table, output) * query.scale, static_cast<std::int64_t>(output)});
  });
  Best best;
  if (total > limit) return best;
  for (const Best& one : bests) best.consider(one);
  return best;
}

}  // namespace

std::vector<Best> best_by_sketch(const QuantizedRows& rows, const GreedyTable& table, const Parallel& parallel) {
  std::vector<Query> queries;
  for (std::size_t t = 0; t < rows.num_rows; ++t)
    queries.push_back(query_of(rows, t, static_cast<std::size_t>(table.num_in)));
  const Scores scores(queries, table, parallel);
  std::vector<Best> best(rows.num_rows);
  for (std::size_t t = 0; t < rows.num_rows; ++t) {
    Query& query = queries[t];
    query.probe = -std::numeric_limits<float>::infinity();
    for (const std::size_t output : scores.probes(t))
      query.probe = std::max(query.probe, exact_value(query, table, output));
    const float logit = std::fabs(query.probe * query.scale);
    if (logit > kSmallest && std::isfinite(logit)) best[t] = best_candidate(scores, query, t, table, parallel);
  }
  return best;
}

}  // namespace nanovllm
