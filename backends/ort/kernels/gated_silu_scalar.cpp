#include "gated_silu_body.h"

nanovllm::GatedSiluRow nanovllm::gated_silu_row_scalar() { return gated_silu_row_of; }
