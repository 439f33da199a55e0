// What the two ways to an arg-max share: quantized rows, the table and the best output so far.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "greedy_head.h"
#include "row_product.h"

namespace nanovllm {

// Rows around kZero, padded with it to a multiple of kRowStep, and their scales.
struct QuantizedRows {
  std::size_t num_rows, stride;
  std::unique_ptr<std::uint8_t[]> integers;  // (num_rows, stride)
  std::unique_ptr<float[]> scales;           // (num_rows,)

  QuantizedRows(std::size_t num_rows, std::size_t num_in)
      : num_rows(num_rows),
        stride(num_parts(num_in, kRowStep) * kRowStep),
        integers(new std::uint8_t[num_rows * stride]),
        scales(new float[num_rows]) {}
};

// An output's logit and its index. As numpy's argmax: the largest, of equal ones the first; the first NaN before all.
struct Best {
  float value = -std::numeric_limits<float>::infinity();
  std::int64_t id = std::numeric_limits<std::int64_t>::max();

  // Whether `other` comes before this.
  bool yields_to(const Best& other) const {
    if (std::isnan(value) || std::isnan(other.value)) {
      if (std::isnan(value) != std::isnan(other.value)) return std::isnan(other.value);
      return other.id < id;
    }
    return other.value > value || (other.value == value && other.id < id);
  }

  void consider(const Best& other) {
    if (yields_to(other)) *this = other;
  }
};

// The best output of each row by the whole product, panel by panel: no logits but those of a panel are ever in memory.
std::vector<Best> best_of_all(const QuantizedRows& rows, const GreedyTable& table, const std::int32_t* row_sums,
                              const Parallel& parallel);

// The best output of each row of `rows`, found by way of the sketch; a row for which the sketch excludes too few
// outputs gets none: its id is not below num_out.
std::vector<Best> best_by_sketch(const QuantizedRows& rows, const GreedyTable& table, const Parallel& parallel);

// Of more rows the whole product takes less time than sketches: of 4 by 896 x 151,936, 5.8 ms by sketch and 6.3 without.
constexpr std::size_t kSketchRows = 4;

}  // namespace nanovllm
