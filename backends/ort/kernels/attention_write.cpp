#include "attention_write.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace nanovllm {
namespace {

constexpr float kLeastScale = 0x1p-100f;
constexpr std::uint32_t kInfinity = 0x7f800000;

std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

float* scale_at(float* scales, std::int64_t head) { return scales == nullptr ? nullptr : scales + head; }

// Each stores a head's features; `scale` is of int8 alone.
void store(const float* features, std::int64_t size, float* out, float*) {
  std::memcpy(out, features, static_cast<std::size_t>(size) * sizeof(float));
}

void store(const float* features, std::int64_t size, BFloat16* out, float*) {
  for (std::int64_t i = 0; i < size; ++i) {
    const std::uint32_t bits = bits_of(features[i]);
    const std::uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to the nearest, ties to even
    out[i].bits = static_cast<std::uint16_t>((bits & 0x7fffffff) > kInfinity ? 0x7fc0 : rounded);
  }
}

void store(const float* features, std::int64_t size, std::int8_t* out, float* scale) {
  std::uint32_t largest_bits = 0;  // of sizes; as integers they have the same order, and NaN comes last
  for (std::int64_t i = 0; i < size; ++i) {
    const std::uint32_t bits = bits_of(features[i]) & 0x7fffffff;
    largest_bits = bits > largest_bits ? bits : largest_bits;
  }
  if (largest_bits >= kInfinity) {  // whoever reads this key or value gets NaN, and nobody else
    std::memset(out, 0, static_cast<std::size_t>(size));
    *scale = std::numeric_limits<float>::quiet_NaN();
    return;
  }
  float largest;
  std::memcpy(&largest, &largest_bits, sizeof largest);
  const float wanted = largest / 127.0f, divisor = wanted < kLeastScale ? kLeastScale : wanted;
  constexpr float kShift = 12582912.0f;  // 1.5 * 2 ** 23: adding it rounds to an integer, ties to even
  for (std::int64_t i = 0; i < size; ++i) {
    out[i] = static_cast<std::int8_t>(static_cast<std::int32_t>((features[i] / divisor + kShift) - kShift));
  }
  *scale = divisor;
}

template <typename T>
void write_rows(const PagedAttention& call, std::int64_t first, std::int64_t end, float* scratch) {
  T* const keys = static_cast<T*>(call.key_cache);
  T* const values = static_cast<T*>(call.value_cache);
  for (std::int64_t token = first; token < end; ++token) {
    const std::int64_t from = token * call.num_kv_heads, to = call.slot_mapping[token] * call.num_kv_heads;
    for (std::int64_t head = 0; head < call.num_kv_heads; ++head) {
      const std::int64_t source = (from + head) * call.head_size, target = (to + head) * call.head_size;
      rotate(call, call.key + source, token, 1.0f, scratch);
      store(scratch, call.head_size, keys + target, scale_at(call.key_scale, to + head));
      store(call.value + source, call.head_size, values + target, scale_at(call.value_scale, to + head));
    }
  }
}

}  // namespace

void write_cache(const PagedAttention& call, std::int64_t first, std::int64_t end, float* scratch) {
  switch (call.pool_type) {
    case PoolType::float32:
      return write_rows<float>(call, first, end, scratch);
    case PoolType::bfloat16:
      return write_rows<BFloat16>(call, first, end, scratch);
    case PoolType::int8:
      return write_rows<std::int8_t>(call, first, end, scratch);
  }
}

}  // namespace nanovllm
