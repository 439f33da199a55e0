#include "gated_silu.h"

#include <algorithm>

#include "instruction_set.h"

namespace nanovllm {
namespace {

constexpr std::int64_t kTaskSize = 16384;  // elements of output: some 10 microseconds, well above a task's own cost

struct Job {
  const float* gate_up;
  std::int64_t num_rows, size, rows_per_task;
  float* output;
  GatedSiluRow row;
};

void run_task(void* data, std::size_t index) {
  const Job& job = *static_cast<const Job*>(data);
  const std::int64_t first = static_cast<std::int64_t>(index) * job.rows_per_task;
  const std::int64_t end = std::min(first + job.rows_per_task, job.num_rows);
  for (std::int64_t t = first; t < end; ++t) {
    const float* gate = job.gate_up + 2 * t * job.size;
    job.row(gate, gate + job.size, job.size, job.output + t * job.size);
  }
}

}  // namespace

GatedSiluRow gated_silu_row() {
#if defined(__x86_64__)
  if (instruction_set() == InstructionSet::avx512) return gated_silu_row_avx512();
  if (instruction_set() == InstructionSet::avx2) return gated_silu_row_avx2();
#endif
  return gated_silu_row_scalar();
}

void gated_silu(const float* gate_up, std::int64_t num_rows, std::int64_t size, float* output,
                const Parallel& parallel) {
  if (num_rows == 0 || size == 0) return;
  const std::int64_t rows_per_task = std::max<std::int64_t>(1, kTaskSize / size);
  Job job{gate_up, num_rows, size, rows_per_task, output, gated_silu_row()};
  parallel.run(static_cast<std::size_t>((num_rows + rows_per_task - 1) / rows_per_task), run_task, &job);
}

}  // namespace nanovllm
