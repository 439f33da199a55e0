"""How large steps are at most, and steps of these sizes: to find out what memory they take, and to warm up.

Their tokens have no slot, so that they leave no trace in the KV cache.
"""

import sys
from dataclasses import dataclass

import numpy as np

from nanovllm.batch import SAMPLING_ROW, Batch, Int32Array, SamplingBatch
from nanovllm.config import EngineConfig

__all__ = ["StepLimits", "decode_step", "largest_step", "warm_up_steps"]

_PROMPT_LENS = (2, 3, 5, 9, 17, 33, 65)  # one more than each power of two up to half of the query rows of a kernel


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """Sequences, tokens and wanted rows of a step, as in `EngineConfig`. max_model_len: tokens of a sequence."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_num_logits: int
    max_model_len: int

    @classmethod
    def of(cls, config: EngineConfig) -> "StepLimits":
        """max_model_len is the user's; where there is none, no limit."""
        return cls(
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_num_logits=config.logits_limit,
            max_model_len=config.max_model_len or sys.maxsize,
        )


def largest_step(limits: StepLimits, table_width: int) -> Batch:
    """As many tokens and wanted rows as there may be, in the longest prompts, all rows sampled from their nucleus."""
    num_tokens = limits.max_num_batched_tokens
    full, rest = divmod(num_tokens, limits.max_model_len)
    lens = [limits.max_model_len] * full + [rest] * (rest > 0)
    num_logits = min(num_tokens, limits.max_num_logits)
    wanted = np.arange(num_tokens - num_logits, num_tokens, dtype=np.int32)
    return _unplaced(np.array(lens), table_width, wanted, temperature=1, top_p=0.9)


def decode_step(limits: StepLimits, table_width: int, num_seqs: int | None = None) -> Batch:
    """One token of each of `num_seqs` sequences, by default as many as there may be; every row is wanted, greedily."""
    num_seqs = num_seqs or limits.max_num_seqs
    wanted = np.arange(num_seqs, dtype=np.int32)
    return _unplaced(np.ones(num_seqs, np.int64), table_width, wanted, temperature=0, top_p=1)


def warm_up_steps(limits: StepLimits, table_width: int) -> list[Batch]:
    """Small steps for each of which the kernels may be compiled anew: a decode, and prompts as short as a number of
    query rows takes, with tables for long sequences, which are divided, and with such for short ones, which are not."""
    longest = limits.max_model_len
    steps = []
    for length in (1, *_PROMPT_LENS):
        if length > min(longest, limits.max_num_batched_tokens):
            break
        for width in sorted({table_width, -(-table_width * length // longest)}):
            wanted = np.zeros(0, np.int32)
            steps.append(_unplaced(np.array([length]), width, wanted, temperature=0, top_p=1))
    return steps


def _unplaced(
    lens: np.ndarray[tuple[int], np.dtype[np.int64]],
    table_width: int,
    wanted: Int32Array,
    *,
    temperature: float,
    top_p: float,
) -> Batch:
    """Sequences of `lens` tokens, none of which has a slot or a predecessor."""
    query_start = np.concatenate(([0], np.cumsum(lens))).astype(np.int32)
    num_seqs, num_tokens = len(lens), int(query_start[-1])
    rows = np.zeros(len(wanted), SAMPLING_ROW)
    rows["temperature"], rows["top_p"] = temperature, top_p
    positions = np.concatenate([np.arange(length) for length in lens])
    return Batch(
        seq_ids=range(num_seqs),
        released_seq_ids=[],
        token_ids=np.zeros(num_tokens, np.int64),
        positions=positions,
        query_start=query_start,
        context_lens=np.zeros(num_seqs, np.int32),
        block_tables=np.zeros((num_seqs, table_width), np.int32),
        slot_mapping=np.full(num_tokens, -1, np.int32),
        logits_indices=wanted,
        logits_start=np.searchsorted(wanted, query_start).astype(np.int32),
        adapter_ids=np.zeros(num_seqs, np.int32),
        sampling=SamplingBatch(rows, positions[wanted] + 1),
    )
