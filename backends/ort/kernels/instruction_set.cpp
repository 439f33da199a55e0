#include "instruction_set.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace nanovllm {
namespace {

constexpr const char* kNames[] = {"scalar", "avx2", "avx512"};

InstructionSet best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512) return InstructionSet::avx512;
  if (avx2) return InstructionSet::avx2;
#endif
  return InstructionSet::scalar;
}

InstructionSet initial() {
  const char* wanted = std::getenv("NANOVLLM_KERNEL_ISA");
  for (int set = 0; wanted != nullptr && set <= static_cast<int>(best()); ++set) {
    if (std::strcmp(wanted, kNames[set]) == 0) return static_cast<InstructionSet>(set);
  }
  return best();
}

std::atomic<InstructionSet>& current() {
  static std::atomic<InstructionSet> set{initial()};
  return set;
}

}  // namespace

InstructionSet instruction_set() { return current().load(std::memory_order_relaxed); }

bool force_instruction_set(InstructionSet set) {
  if (static_cast<int>(set) < 0 || set > best()) return false;
  current().store(set, std::memory_order_relaxed);
  return true;
}

}  // namespace nanovllm

extern "C" {

__attribute__((visibility("default"))) const char* nanovllm_instruction_set() {
  return nanovllm::kNames[static_cast<int>(nanovllm::instruction_set())];
}

__attribute__((visibility("default"))) int nanovllm_force_instruction_set(int set) {
  return nanovllm::force_instruction_set(static_cast<nanovllm::InstructionSet>(set)) ? 1 : 0;
}
}
