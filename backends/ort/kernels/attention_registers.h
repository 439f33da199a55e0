// The two products of attention, as far as they fit into registers: some rows with some keys, or with some features.
// For one instruction set, that of the including file.
#pragma once

#include "attention_elements.h"
#include "attention_tile.h"
#include "simd.h"

namespace {

using nanovllm::kStep;

constexpr int kKeys = 2 * kWidth;  // of a group
#if defined(__AVX512F__)
constexpr int kScoreRows = 8, kWeighRows = 7, kWeighVecs = 4;  // what 32 registers hold
#elif defined(__AVX2__)
constexpr int kScoreRows = 6, kWeighRows = 6, kWeighVecs = 2;  // 16 registers
#else
constexpr int kScoreRows = 3, kWeighRows = 4, kWeighVecs = 1;  // 16 or 32 registers of half a vector
#endif

template <typename T>
inline __attribute__((always_inline)) void ask_for(const T* features) {
  prefetch(reinterpret_cast<const float*>(features));
}

// Scores of R rows with the keys of a group, whose features lie in `columns`, (head_size, kKeys).
template <int R>
void score_rows(const float* queries, std::int64_t head_size, const float* columns, float* scores) {
  Vec low[R], high[R];
  for (int r = 0; r < R; ++r) low[r] = high[r] = Vec{};
  for (std::int64_t d = 0; d < head_size; ++d) {
    const Vec a = load(columns + d * kKeys), b = load(columns + d * kKeys + kWidth);
    for (int r = 0; r < R; ++r) {
      const Vec q = all(queries[r * head_size + d]);
      low[r] = fma(q, a, low[r]);
      high[r] = fma(q, b, high[r]);
    }
  }
  for (int r = 0; r < R; ++r) {
    store(scores + r * kStep, low[r]);
    store(scores + r * kStep + kWidth, high[r]);
  }
}

// The same for up to R rows.
template <int R>
void score_up_to(std::int64_t rows, const float* queries, std::int64_t head_size, const float* columns, float* scores) {
  if constexpr (R > 1) {
    if (rows < R) return score_up_to<R - 1>(rows, queries, head_size, columns, scores);
  }
  score_rows<R>(queries, head_size, columns, scores);
}

// Adds weights times values of keys first .. end - 1 to D vectors of the sums of R rows; with `part`, to one vector of
// which only `part` lanes exist in memory. ahead: asks for the values of the next step.
template <int R, int D, typename T>
void weigh_rows(const float* weights, std::int64_t first, std::int64_t end, const T* values, const std::int64_t* slots,
                float* sums, std::int64_t stride, int part, bool ahead) {
  Vec sum[R][D];
  for (int r = 0; r < R; ++r) {
    for (int i = 0; i < D; ++i) sum[r][i] = load(sums + r * stride + i * kWidth);
  }
  for (std::int64_t key = first; key < end; ++key) {
    const T* value = values + slots[key];
    for (int i = 0; ahead && i < D; i += kPack<T>) ask_for(values + slots[key + kStep] + i * kWidth);
    Vec v[D];
    if (D == 1 && part > 0) {
      v[0] = load_part(value, part);
    } else {
      for (int i = 0; i < D; ++i) v[i] = load(value + i * kWidth);
    }
    for (int r = 0; r < R; ++r) {
      const Vec weight = all(weights[r * kStep + key]);
      for (int i = 0; i < D; ++i) sum[r][i] = fma(weight, v[i], sum[r][i]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int i = 0; i < D; ++i) store(sums + r * stride + i * kWidth, sum[r][i]);
  }
}

}  // namespace
