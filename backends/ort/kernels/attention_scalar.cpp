#include "attention_body.h"

nanovllm::AttentionKernel nanovllm::attention_kernel_scalar() { return {scratch_floats, attend, join}; }
