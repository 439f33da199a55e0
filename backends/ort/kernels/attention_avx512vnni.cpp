#if defined(__x86_64__)
#include "attention_body.h"
#include "attention_integers.h"

nanovllm::AttentionKernel nanovllm::attention_kernel_avx512vnni() { return kAttentionKernel<IntegerTile>; }
#endif
