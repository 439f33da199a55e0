// The guess: weights are counted in narrow bins of (max - logit) / temperature. A sample of the row shows how many
// there are; the first bins (the head), in which few logits have much of the weight, are then counted in full. The
// nucleus ends where the sum, from the largest weights down, reaches top_p of the whole, give or take the sample's
// standard error:
//
//     mass  |##                          head: weights as they are
//           |####++                      tail: sampled, each counts for `multiplicity` logits
//           |####+++++++++
//           +-----------[-]-----------> (max - logit) / temperature
//                    the range

#include "row_nucleus.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

namespace nanovllm {
namespace {

constexpr std::size_t kRun = 16;        // logits that are sampled together: a cache line
constexpr std::size_t kNumRuns = 160;   // the least of a sample
constexpr std::size_t kMaxSample = 2 * kNumRuns * kRun + kRun;
constexpr std::size_t kHeadSample = 12;  // the head is so many of a sample, about 700 of 150,000 logits
constexpr std::size_t kMaxHead = 6144;
constexpr std::size_t kNumBins = 1024;  // the last holds what is beyond
// No nucleus ends further down: even 2 ** 31 weights of exp(-40) are less than 1 - top_p can be for a float, 6e-8.
constexpr double kBinsPerUnit = kNumBins / 40.0;
constexpr double kNumErrors = 3;        // standard errors on either side

std::uint64_t bits_of(double x) {
  std::uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

double from_bits(std::uint64_t bits) {
  double x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

}  // namespace

NucleusGuess::NucleusGuess()
    : logits_(new float[std::max(kMaxHead, kMaxSample)]),
      ids_(new std::int32_t[kMaxHead]),
      weights_(new double[std::max(kMaxHead, kMaxSample)]),
      bins_(new Bin[kNumBins]) {}

WeightRange NucleusGuess::operator()(const RowFunctions& rows, const float* logits, std::size_t n,
                                     const Softmax& softmax, double keep, double top_p) {
  std::fill_n(bins_.get(), kNumBins, Bin{});
  const std::size_t num_sampled = take_sample(logits, n);
  count(rows, logits_.get(), num_sampled, softmax, keep);
  std::size_t num_head_bins = 0, num_above = 0;
  while (num_head_bins < kNumBins - 1 && num_above < kHeadSample) num_above += bins_[num_head_bins++].num_weights;
  const double floor = softmax.max - softmax.temperature * static_cast<double>(num_head_bins) / kBinsPerUnit;
  const std::size_t num_head =
      rows.gather(logits, n, static_cast<float>(floor), kMaxHead, logits_.get(), ids_.get());
  if (num_head == kMaxHead)  // many equal ones perhaps; the sample has to do
    return range(0, static_cast<double>(n) / static_cast<double>(num_sampled), top_p);
  std::fill_n(bins_.get(), num_head_bins, Bin{});
  count(rows, logits_.get(), num_head, softmax, keep);
  const auto num_tail = static_cast<double>(std::max(num_sampled, num_above + 1) - num_above);
  return range(num_head_bins, static_cast<double>(n - num_head) / num_tail, top_p);
}

std::size_t NucleusGuess::take_sample(const float* logits, std::size_t n) {
  const std::size_t stride = std::max<std::size_t>(1, n / (kRun * kNumRuns)) * kRun;
  std::size_t count = 0;
  for (std::size_t i = 0; i < n; i += stride) {
    const std::size_t length = std::min(kRun, n - i);
    std::memcpy(logits_.get() + count, logits + i, length * sizeof(float));
    count += length;
  }
  return count;
}

void NucleusGuess::count(const RowFunctions& rows, const float* logits, std::size_t n, const Softmax& softmax,
                         double keep) {
  rows.weigh(logits, n, softmax, weights_.get());
  const double bins_per_logit = kBinsPerUnit / softmax.temperature;
  for (std::size_t i = 0; i < n; ++i) {
    const double weight = weights_[i] >= keep ? weights_[i] : 0;
    const double place = (softmax.max - logits[i]) * bins_per_logit;
    Bin& bin = bins_[place < kNumBins - 1 ? static_cast<std::size_t>(place) : kNumBins - 1];
    bin.mass += weight;
    bin.squares += weight * weight;
    ++bin.num_weights;
  }
}

WeightRange NucleusGuess::range(std::size_t num_head_bins, double multiplicity, double top_p) const {
  const auto mass_of = [&](std::size_t bin) { return bins_[bin].mass * (bin < num_head_bins ? 1 : multiplicity); };
  const auto bin_reaching = [&](double target) {
    std::size_t bin = 0;
    for (double sum = mass_of(0); sum < target && bin < kNumBins - 1; sum += mass_of(++bin)) {
    }
    return bin;
  };
  double mass = 0, inside = 0, outside = 0;  // the latter: variances
  for (std::size_t bin = 0; bin < kNumBins; ++bin) mass += mass_of(bin);
  const std::size_t end = bin_reaching(top_p * mass);
  for (std::size_t bin = num_head_bins; bin < kNumBins; ++bin)
    (bin <= end ? inside : outside) += multiplicity * (multiplicity - 1) * bins_[bin].squares;
  // What is inside counts in the nucleus and, times top_p, in the target; what is outside only in the target.
  const double error = kNumErrors * std::sqrt((1 - top_p) * (1 - top_p) * inside + top_p * top_p * outside);
  const std::size_t first = bin_reaching(top_p * mass - error), last = bin_reaching(top_p * mass + error);
  const double low = last < kNumBins - 1 ? std::exp(-static_cast<double>(last + 1) / kBinsPerUnit) : 0;
  const double high = first > 0 ? std::exp(-static_cast<double>(first) / kBinsPerUnit) : kAboveAll;
  return {low, high};
}

NucleusEnd end_of_nucleus(const RowFunctions& rows, double* weights, double* spare, std::size_t n,
                          const WeightRange& range, double above, double target) {
  std::uint64_t low = bits_of(range.low), high = bits_of(range.high);  // positive doubles are ordered as their bits are
  for (;;) {
    const double pivot = from_bits(low + (high - low) / 2);
    std::size_t num_upper;
    const double mass = rows.split(weights, n, pivot, spare, &num_upper);
    if (num_upper == 0 || num_upper == n) {  // no progress, but for a range that fits
      if (num_upper == n) std::swap(weights, spare);
      const auto [smallest, largest] = std::minmax_element(weights, weights + n);
      if (*smallest == *largest) return {*smallest, above + static_cast<double>(n) * *smallest >= target};
      low = bits_of(*smallest);
      high = bits_of(*largest) + 1;
    } else if (above + mass >= target) {
      std::swap(weights, spare);
      n = num_upper;
      low = bits_of(pivot);
    } else {
      above += mass;
      n -= num_upper;
      high = bits_of(pivot);
    }
  }
}

}  // namespace nanovllm
