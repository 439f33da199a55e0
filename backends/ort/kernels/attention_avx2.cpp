#if defined(__x86_64__)
#include "attention_body.h"
#include "attention_floats.h"

nanovllm::AttentionKernel nanovllm::attention_kernel_avx2() { return kAttentionKernel<FloatTile>; }
#endif
