// The functions of row_weights.h, compiled once for each instruction set.

#include "row_weights.h"

#include <cmath>
#include <cstring>
#include <limits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // no vector passes between functions that are not inlined
#endif

#define NANOVLLM_LANES 2
#define NANOVLLM_TARGET
namespace nanovllm::scalar {
#include "row_weights.inc"
}
#undef NANOVLLM_LANES
#undef NANOVLLM_TARGET

#if defined(__x86_64__)
#define NANOVLLM_LANES 4
#define NANOVLLM_TARGET __attribute__((target("avx2,fma")))
namespace nanovllm::avx2 {
#include "row_weights.inc"
}
#undef NANOVLLM_LANES
#undef NANOVLLM_TARGET

#define NANOVLLM_LANES 8
#define NANOVLLM_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
namespace nanovllm::avx512 {
#include "row_weights.inc"
}
#undef NANOVLLM_LANES
#undef NANOVLLM_TARGET
#endif

namespace nanovllm {

const RowFunctions& row_functions(InstructionSet set) {
#if defined(__x86_64__)
  if (set == InstructionSet::avx512) return avx512::kFunctions;
  if (set == InstructionSet::avx2) return avx2::kFunctions;
#endif
  return scalar::kFunctions;
}

}  // namespace nanovllm
