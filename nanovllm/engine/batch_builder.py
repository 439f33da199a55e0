"""Packs a schedule into the `Batch` that a runner is given.

The work for each sequence is a few bytes joined at C speed; the rest is numpy on whole arrays, so that a decode step of
hundreds of sequences costs the host well under a millisecond.
"""

from collections.abc import Sequence as Seq

import numpy as np

from nanovllm.batch import SAMPLING_ROW, Batch, Int32Array, Int64Array, LogitsEdits, SamplingBatch
from nanovllm.engine.schedule import Schedule
from nanovllm.engine.sequence import Sequence

__all__ = ["build_batch"]


def build_batch(step: Schedule, block_size: int) -> Batch:
    """The batch of one step; fresh arrays, so that it stays valid while the next one is prepared."""
    sequences = step.sequences
    num_new = np.array(step.num_new_tokens, np.int32)  # (S,)
    num_logits = np.array(step.num_logits, np.int32)  # (S,)
    context_lens = np.array([seq.num_computed_tokens for seq in sequences], np.int32)  # (S,)
    query_start = _running_total(num_new)  # (S + 1,)
    logits_start = _running_total(num_logits)  # (S + 1,)
    block_tables = _pack_block_tables(sequences)
    owner = np.repeat(np.arange(len(sequences)), num_new)  # (T,), the sequence of each token
    positions = np.arange(query_start[-1], dtype=np.int64) - (query_start[:-1] - context_lens)[owner]
    slots = block_tables[owner, positions // block_size] * block_size + positions % block_size
    # A sequence's rows are those of its last tokens: row r of R stands R - r tokens before the end of its query.
    logits_indices = np.arange(logits_start[-1], dtype=np.int32) + np.repeat(
        query_start[1:] - logits_start[1:], num_logits
    )
    return Batch(
        seq_ids=[seq.seq_id for seq in sequences],
        released_seq_ids=step.released,
        token_ids=_pack_token_ids(sequences, step.num_new_tokens),
        positions=positions,
        query_start=query_start,
        context_lens=context_lens,
        block_tables=block_tables,
        slot_mapping=slots.astype(np.int32),
        logits_indices=logits_indices,
        logits_start=logits_start,
        adapter_ids=np.array([seq.adapter_id for seq in sequences], np.int32),
        sampling=_sampling(step, positions[logits_indices] + 1, logits_start),
    )


def _sampling(step: Schedule, positions: Int64Array, logits_start: Int32Array) -> SamplingBatch:
    pairs = [(seq, count) for seq, count in zip(step.sequences, step.num_logits, strict=True) if count]
    rows = np.frombuffer(b"".join([seq.sampling_row * count for seq, count in pairs]), SAMPLING_ROW)
    if step.is_plain:
        return SamplingBatch(rows=rows, positions=positions)
    wants_logprobs = any(seq.num_logprobs >= 0 or seq.num_prompt_logprobs >= 0 for seq, _ in pairs)
    return SamplingBatch(
        rows=rows,
        positions=positions,
        edits=_edits(step, logits_start),
        num_logprobs=_num_logprobs(pairs, positions) if wants_logprobs else None,
        targets=_targets(pairs, positions) if any(seq.wants_prompt_rows for seq, _ in pairs) else None,
    )


def _edits(step: Schedule, logits_start: Int32Array) -> dict[int, LogitsEdits]:
    """The edits of the sampled rows, which are the last ones of each sequence: one for each draft and one more."""
    edits: dict[int, LogitsEdits] = {}
    for i, seq in enumerate(step.sequences):
        if seq.edits is not None and _is_sampled(seq, step.num_new_tokens[i]):
            rows = seq.edits.rows(seq.draft_token_ids)
            first = int(logits_start[i + 1]) - len(rows)
            edits.update((first + j, row) for j, row in enumerate(rows))
    return edits


def _is_sampled(seq: Sequence, num_new_tokens: int) -> bool:
    return seq.num_computed_tokens + num_new_tokens >= seq.num_tokens


def _num_logprobs(pairs: Seq[tuple[Sequence, int]], positions: Int64Array) -> Int32Array:
    of_prompt = np.repeat([seq.num_prompt_logprobs for seq, _ in pairs], [count for _, count in pairs])
    sampled = np.repeat([seq.num_logprobs for seq, _ in pairs], [count for _, count in pairs])
    num_tokens = np.repeat([seq.num_tokens for seq, _ in pairs], [count for _, count in pairs])
    return np.where(positions < num_tokens, of_prompt, sampled).astype(np.int32)


def _targets(pairs: Seq[tuple[Sequence, int]], positions: Int64Array) -> Int64Array:
    """The prompt's next token for rows before its end, -1 for the others."""
    targets = np.full(len(positions), -1, np.int64)
    row = 0
    for seq, count in pairs:
        known = seq.token_ids[int(positions[row]) : int(positions[row]) + count]
        targets[row : row + len(known)] = known
        row += count
    return targets


def _running_total(counts: np.ndarray[tuple[int], np.dtype[np.int32]]) -> Int32Array:
    total = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=total[1:])
    return total


def _pack_token_ids(sequences: Seq[Sequence], num_new_tokens: Seq[int]) -> Int64Array:
    pieces = []
    for seq, num_new in zip(sequences, num_new_tokens, strict=True):
        pieces.append(seq.token_ids[seq.num_computed_tokens : seq.num_computed_tokens + num_new])
        if seq.draft_token_ids:
            pieces.append(seq.draft_token_ids)
    return np.frombuffer(b"".join(pieces), np.int64)


def _pack_block_tables(sequences: Seq[Sequence]) -> Int32Array:
    """int32 (S, longest table), padded with 0."""
    lengths = np.array([len(seq.block_table) for seq in sequences])
    tables = np.zeros((len(sequences), lengths.max()), np.int32)
    tables[np.arange(tables.shape[1]) < lengths[:, None]] = np.frombuffer(
        b"".join([seq.block_table for seq in sequences]), np.int32
    )
    return tables
