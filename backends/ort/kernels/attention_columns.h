// Keys of a pool, row by row as they lie, turned into columns of floats: (head_size, kKeys) for a group of kKeys keys.
#pragma once

#include "attention_keys.h"
#include "attention_registers.h"

namespace {

// Four bytes of each of a group's keys are a column; each becomes kPack columns, `num_features` in all.
template <typename T>
void unpack_columns(const float* packed, std::int64_t num_features, float* columns) {
  for (std::int64_t f = 0; f < num_features; f += kPack<T>, packed += kKeys) {
    const Vec low = load(packed), high = load(packed + kWidth);
    for (int part = 0; part < kPack<T> && f + part < num_features; ++part, columns += kKeys) {
      store(columns, unpack<T>(low, part));
      store(columns + kWidth, unpack<T>(high, part));
    }
  }
}

// The first features of a group of keys, at most as many as fill a vector, to columns. aligned: whether rows start at
// multiples of 4 bytes.
template <typename T>
void transpose_features(const T* const* rows, std::int64_t num_features, bool aligned, float* columns) {
  const bool whole = num_features == kWidth * kPack<T>;
  const float* places[kKeys];
  float copies[kKeys * kWidth], packed[kKeys * kWidth];
  if (whole && aligned) {
    for (int i = 0; i < kKeys; ++i) places[i] = reinterpret_cast<const float*>(rows[i]);
  } else {
    __builtin_memset(copies, 0, sizeof copies);
    for (int i = 0; i < kKeys; ++i) {
      places[i] = copies + i * kWidth;
      __builtin_memcpy(copies + i * kWidth, rows[i], static_cast<std::size_t>(num_features) * sizeof(T));
    }
  }
  const bool direct = whole && kPack<T> == 1;
  float* out = direct ? columns : packed;
  transpose(places, out, kKeys);
  transpose(places + kWidth, out + kWidth, kKeys);
  if (!direct) unpack_columns<T>(packed, num_features, columns);
}

// Rows of a group of keys, where keys that the tile does not see are rows of zeros, to columns.
template <typename T>
void gather_columns(const Keys& step, const T* keys, const T* zeros, std::int64_t start, float* columns) {
  constexpr std::int64_t kMost = kWidth * kPack<T>;
  const T* rows[kKeys];
  for (int i = 0; i < kKeys; ++i) {
    const std::int64_t key = start + i;
    rows[i] = key >= step.first && key < step.end ? keys + step.slots[key] : zeros;
  }
  const std::int64_t* next = step.slots + kStep + start;
  const bool aligned = step.call.head_size % kPack<T> == 0;
  for (std::int64_t d = 0; d < step.call.head_size; d += kMost) {
    for (int i = 0; i < kKeys; ++i) ask_for(keys + next[i] + d);
    transpose_features(rows, lesser(step.call.head_size - d, kMost), aligned, columns + d * kKeys);
    for (int i = 0; i < kKeys; ++i) rows[i] += kMost;
  }
}

}  // namespace
