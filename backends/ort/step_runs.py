"""Splits a step into runs of the graph, because the stock attention pads.

The body of PagedAttention pads every sequence of a run to the run's longest query and longest context; all else in the
graph is packed. Putting everything into one run wastes attention on padding, one run per sequence reads all weights
each time. So sequences are sorted by query length and grouped while that is cheaper by one formula:

    cost(run) = run_cost + num_seqs * longest_query * longest_context        in padded (query, key) pairs

Decodes end up together, and so do chunks of like length. The compiled kernel pads nothing and takes a step whole.
Knows numpy only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nanovllm.batch import Batch

__all__ = ["StepRun", "split_step", "whole_step"]

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class StepRun:
    """Some sequences of a batch, packed as a batch of their own.

    inputs: the graph's inputs by name, C-contiguous. rows: int64 (num_logits of the run,), ascending: which of the
    batch's rows that are not greedy these are. greedy_rows: int64 (num_greedy of the run,): which of the batch's rows
    those are of which the graph gives the token alone.
    """

    inputs: dict[str, npt.NDArray[Any]]
    rows: Int64Array
    greedy_rows: Int64Array


def split_step(batch: Batch, block_size: int, run_cost: float, is_greedy: BoolArray) -> list[StepRun]:
    """The runs of a step, each with its sequences in the batch's order.

    run_cost: what a run costs beside attention, in (query, key) pairs of padded attention. is_greedy: (num_logits,):
    the rows of which the token is wanted in place of the logits.
    """
    query_lens = np.diff(batch.query_start).astype(np.int64)
    total_lens = batch.context_lens + query_lens
    groups = list(_groups(query_lens, total_lens, run_cost))
    longest = [int(total_lens[group].max()) for group in groups]
    return [
        _run(batch, group, query_lens, total, block_size, is_greedy)
        for group, total in zip(groups, longest, strict=True)
    ]


def whole_step(batch: Batch, block_size: int, is_greedy: BoolArray) -> list[StepRun]:
    """The step as one run, none if it has no sequences. is_greedy: as for `split_step`."""
    if batch.num_seqs == 0:
        return []
    query_lens = np.diff(batch.query_start).astype(np.int64)
    longest_total = int((batch.context_lens + query_lens).max())
    return [_run(batch, np.arange(batch.num_seqs), query_lens, longest_total, block_size, is_greedy)]


def _groups(query_lens: Int64Array, total_lens: Int64Array, run_cost: float) -> Iterator[Int64Array]:
    """Indices of the sequences of each run, ascending."""
    order = np.lexsort((total_lens, query_lens))
    first, longest_query, longest_total = 0, 0, 0
    for i, sequence in enumerate(order):
        query, total = int(query_lens[sequence]), int(total_lens[sequence])
        num_seqs = i - first
        joined = (num_seqs + 1) * max(longest_query, query) * max(longest_total, total)
        apart = num_seqs * longest_query * longest_total + query * total + run_cost
        if num_seqs and joined > apart:
            yield np.sort(order[first:i])
            first, longest_query, longest_total = i, 0, 0
        longest_query, longest_total = max(longest_query, query), max(longest_total, total)
    if len(order):
        yield np.sort(order[first:])


def _run(
    batch: Batch,
    group: Int64Array,
    query_lens: Int64Array,
    longest_total: int,
    block_size: int,
    is_greedy: BoolArray,
) -> StepRun:
    num_blocks = -(-longest_total // block_size)
    lens = query_lens[group]
    starts = np.cumsum(lens) - lens  # of each sequence within the run
    tokens = _ranges(batch.query_start[group], lens)
    num_rows = np.diff(batch.logits_start)[group]
    rows = _ranges(batch.logits_start[group], num_rows)
    indices = batch.logits_indices[rows] + np.repeat(starts - batch.query_start[group], num_rows)
    greedy = is_greedy[rows]
    places = np.cumsum(~is_greedy) - 1  # of each row among those that are not greedy
    inputs = {
        "token_ids": _packed(batch.token_ids[tokens], np.int64),
        "positions": _packed(batch.positions[tokens], np.int64),
        "query_start": _packed(np.append(starts, len(tokens)), np.int32),
        "context_lens": _packed(batch.context_lens[group], np.int32),
        "block_tables": _packed(batch.block_tables[group, :num_blocks], np.int32),
        "slot_mapping": _packed(batch.slot_mapping[tokens], np.int32),
        "logits_indices": _packed(indices[~greedy], np.int32),
        "greedy_indices": _packed(indices[greedy], np.int32),
    }
    return StepRun(inputs, places[rows[~greedy]], rows[greedy])


def _ranges(starts: npt.NDArray[Any], lens: npt.NDArray[Any]) -> Int64Array:
    """The ranges starts[i] .. starts[i] + lens[i] one after the other."""
    ends = np.cumsum(lens)
    indices: Int64Array = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lens), lens)
    return indices


def _packed(array: npt.NDArray[Any], dtype: type[np.integer[Any]]) -> npt.NDArray[Any]:
    return np.ascontiguousarray(array, dtype)
