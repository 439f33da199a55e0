// A thread's scratch memory, handed out piece by piece; without memory it only counts.
#pragma once

#include <cstdint>

namespace {

class Scratch {
 public:
  explicit Scratch(float* memory) : memory_(memory) {}

  // Memory for `count` of T, aligned to 64 bytes; its content is undefined. Null where there is no memory.
  template <typename T>
  T* take(std::int64_t count) {
    float* const piece = memory_ == nullptr ? nullptr : memory_ + floats_;
    floats_ += (count * static_cast<std::int64_t>(sizeof(T)) + 63) / 64 * 16;
    return reinterpret_cast<T*>(piece);
  }

  std::int64_t floats() const { return floats_; }  // handed out so far

 private:
  float* const memory_;
  std::int64_t floats_ = 0;
};

}  // namespace
