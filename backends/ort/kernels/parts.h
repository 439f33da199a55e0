// Cutting the work of a layer into tasks, and running these.
#pragma once

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include "parallel.h"

namespace nanovllm {

struct Span {
  std::size_t begin, end;
};

inline std::size_t num_parts(std::size_t n, std::size_t size) { return (n + size - 1) / size; }

inline Span part(std::size_t n, std::size_t size, std::size_t index) {
  return {index * size, std::min(n, (index + 1) * size)};
}

// Calls task(i) for every i below count.
template <class Task>
void run_parts(const Parallel& parallel, std::size_t count, Task&& task) {
  if (count == 1) return task(std::size_t{0});
  parallel.run(count, [](void* data, std::size_t index) { (*static_cast<std::decay_t<Task>*>(data))(index); }, &task);
}

}  // namespace nanovllm
