// Paged attention over a ragged batch: what the node nanovllm::PagedAttention_v1 asks for (export/paged_attention.py).
//
// Every query's result is a function of its own row, its place, and its sequence's keys and values alone, to the last
// bit: a query takes its keys in splits of kSplit counted from the sequence's first token, each in the same order of
// operations, whatever else is in the batch, however the sequence was cut into chunks, and however many threads run.
#pragma once

#include <string>

#include "attention_call.h"
#include "parallel.h"

namespace nanovllm {

// What is wrong with the indices, in words; empty where all of them stay within their arrays.
std::string attention_problem(const PagedAttention& call);

// Requires that attention_problem(call) is empty.
void paged_attention(const PagedAttention& call, const Parallel& parallel);

}  // namespace nanovllm
