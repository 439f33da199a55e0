"""Packs a schedule into the `Batch` that a runner is given.

The work for each sequence is a few bytes joined at C speed; the rest is numpy on whole arrays, so that a decode step of
hundreds of sequences costs the host well under a millisecond.
"""

from collections.abc import Sequence as Seq

import numpy as np

from nanovllm.batch import SAMPLING_ROW, Batch, Int32Array, SamplingBatch
from nanovllm.engine.scheduler import Schedule
from nanovllm.engine.sequence import Sequence

__all__ = ["build_batch"]


def build_batch(step: Schedule, block_size: int) -> Batch:
    """The batch of one step; fresh arrays, so that it stays valid while the next one is prepared."""
    sequences = step.sequences
    num_new = np.array(step.num_new_tokens, np.int32)  # (S,)
    context_lens = np.array([seq.num_computed_tokens for seq in sequences], np.int32)  # (S,)
    num_tokens = np.array([len(seq.token_ids) for seq in sequences], np.int64)  # (S,)
    query_start = _running_total(num_new)  # (S + 1,)
    block_tables = _pack_block_tables(sequences)
    owner = np.repeat(np.arange(len(sequences)), num_new)  # (T,), the sequence of each token
    positions = np.arange(query_start[-1], dtype=np.int64) - (query_start[:-1] - context_lens)[owner]
    slots = block_tables[owner, positions // block_size] * block_size + positions % block_size
    wanted = np.flatnonzero(context_lens + num_new == num_tokens)  # sequences whose last token is computed now
    return Batch(
        seq_ids=[seq.seq_id for seq in sequences],
        released_seq_ids=step.released,
        token_ids=_pack_token_ids(sequences, step.num_new_tokens),
        positions=positions,
        query_start=query_start,
        context_lens=context_lens,
        block_tables=block_tables,
        slot_mapping=slots.astype(np.int32),
        logits_indices=query_start[wanted + 1] - 1,
        logits_start=_running_total(context_lens + num_new == num_tokens),
        adapter_ids=np.array([seq.adapter_id for seq in sequences], np.int32),
        sampling=SamplingBatch(
            rows=np.frombuffer(b"".join([sequences[i].sampling_row for i in wanted.tolist()]), SAMPLING_ROW),
            positions=num_tokens[wanted],
        ),
    )


def _running_total(counts: np.ndarray[tuple[int], np.dtype[np.int32 | np.bool_]]) -> Int32Array:
    total = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=total[1:])
    return total


def _pack_token_ids(sequences: Seq[Sequence], num_new_tokens: Seq[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    pieces = [
        seq.token_ids[seq.num_computed_tokens : seq.num_computed_tokens + num_new]
        for seq, num_new in zip(sequences, num_new_tokens, strict=True)
    ]
    return np.frombuffer(b"".join(pieces), np.int64)


def _pack_block_tables(sequences: Seq[Sequence]) -> Int32Array:
    """int32 (S, longest table), padded with 0."""
    lengths = np.array([len(seq.block_table) for seq in sequences])
    tables = np.zeros((len(sequences), lengths.max()), np.int32)
    tables[np.arange(tables.shape[1]) < lengths[:, None]] = np.frombuffer(
        b"".join([seq.block_table for seq in sequences]), np.int32
    )
    return tables
