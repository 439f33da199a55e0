#pragma once
#include <cstddef>
namespace nanovllm {
// Runs task(data, i) for every i in 0 .. count-1 on the host's threads; returns when all are done.
struct Parallel {
  virtual void run(std::size_t count, void (*task)(void* data, std::size_t index), void* data) const = 0;
 protected:
  ~Parallel() = default;
};
}  // namespace nanovllm
