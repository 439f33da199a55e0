// Parallel for callers that have no thread pool of their own: the calling thread and others that live for one call.
#pragma once

#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "parallel.h"

namespace nanovllm {

// Where the system starts no more threads, those that there are do the work. What a task throws is thrown at the end.
class SpawnedThreads final : public Parallel {
 public:
  explicit SpawnedThreads(std::size_t num_threads) : num_threads_(num_threads) {}

  void run(std::size_t count, void (*task)(void* data, std::size_t index), void* data) const override {
    std::atomic<std::size_t> next{0};
    std::mutex mutex;
    std::exception_ptr error;
    const auto work = [&] {
      try {
        for (std::size_t i = next++; i < count; i = next++) task(data, i);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex);
        error = std::current_exception();
      }
    };
    std::vector<std::thread> others;
    others.reserve(num_threads_);
    try {
      for (std::size_t i = 1; i < num_threads_ && i < count; ++i) others.emplace_back(work);
    } catch (const std::system_error&) {
    }
    work();
    for (std::thread& other : others) other.join();
    if (error) std::rethrow_exception(error);
  }

 private:
  std::size_t num_threads_;
};

}  // namespace nanovllm
