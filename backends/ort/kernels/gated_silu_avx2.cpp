#if defined(__x86_64__)
#include "gated_silu_body.h"

nanovllm::GatedSiluRow nanovllm::gated_silu_row_avx2() { return gated_silu_row_of; }
#endif
