#include "attention_body.h"
#include "attention_floats.h"

nanovllm::AttentionKernel nanovllm::attention_kernel_scalar() { return kAttentionKernel<FloatTile>; }
