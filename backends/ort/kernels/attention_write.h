// Writes a step's keys and values into the pools, as the contract (export/paged_attention.py) rounds them.
#pragma once

#include "attention_call.h"

namespace nanovllm {

// Packed rows first .. end - 1. scratch: head_size floats.
void write_cache(const PagedAttention& call, std::int64_t first, std::int64_t end, float* scratch);

}  // namespace nanovllm
