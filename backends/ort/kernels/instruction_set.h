// Which instructions the kernels use: the best that the processor has, or what a test forces.
#pragma once

namespace nanovllm {

enum class InstructionSet : int { scalar = 0, avx2 = 1, avx512 = 2 };

// The best set of this processor, or a lesser one where NANOVLLM_KERNEL_ISA says so (scalar, avx2 or avx512; read
// once; an unknown word or a set that the processor lacks changes nothing) or `force_instruction_set` was called.
InstructionSet instruction_set();

// For tests. Returns whether the processor has the set; else nothing changes. Not while a kernel runs.
bool force_instruction_set(InstructionSet set);

}  // namespace nanovllm
