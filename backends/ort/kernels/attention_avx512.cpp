#if defined(__x86_64__)
#include "attention_body.h"

nanovllm::AttentionKernel nanovllm::attention_kernel_avx512() { return {scratch_floats, attend, join}; }
#endif
