"""Steps of a runner as the engine packs them, of any mixture of sequences whose tokens are all known from the start.

Knows nothing of where a sequence's keys and values lie: block tables and slots are the caller's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from nanovllm.batch import SAMPLING_ROW, Batch, SamplingBatch
from nanovllm.plugins import LogitsModelRunner
from nanovllm.testing import ReferenceModel

__all__ = ["KnownSequence", "Oracle", "Row", "Wanted", "Work", "pack_work", "run_work"]

Wanted = Literal["last", "all", "none"]


class KnownSequence(Protocol):
    """tokens: all. num_computed: how many of them are in the cache."""

    tokens: list[int]
    num_computed: int


S = TypeVar("S", bound=KnownSequence)
Row = tuple[S, int, npt.NDArray[np.float32]]
"""A wanted row: its sequence, its position there, and the logits, (vocab_size,)."""


@dataclass
class Work(Generic[S]):
    """The next num_tokens of a sequence, and the rows of which logits are wanted."""

    sequence: S
    num_tokens: int = 1
    wanted: Wanted = "last"

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        return self.sequence.num_computed + np.arange(self.num_tokens)

    @property
    def wanted_positions(self) -> list[int]:
        first = {"last": -1, "all": 0, "none": self.num_tokens}[self.wanted]
        positions: list[int] = self.positions.tolist()
        return positions[first:]


def pack_work(
    work: Sequence[Work[S]],
    *,
    seq_ids: list[int],
    block_tables: npt.NDArray[np.int32],
    slot_mapping: npt.NDArray[np.int32],
    released: Sequence[int] = (),
) -> Batch:
    """The batch of one step. block_tables: (len(work), any). slot_mapping: (tokens of all work,)."""
    query_start = np.concatenate([[0], np.cumsum([item.num_tokens for item in work])])
    rows = [
        [query_start[i] + position - item.sequence.num_computed for position in item.wanted_positions]
        for i, item in enumerate(work)
    ]
    num_rows = [len(part) for part in rows]
    return Batch(
        seq_ids=seq_ids,
        released_seq_ids=list(released),
        token_ids=np.concatenate([np.array(item.sequence.tokens)[item.positions] for item in work]).astype(np.int64),
        positions=np.concatenate([item.positions for item in work]).astype(np.int64),
        query_start=query_start.astype(np.int32),
        context_lens=np.array([item.sequence.num_computed for item in work], np.int32),
        block_tables=block_tables,
        slot_mapping=slot_mapping,
        logits_indices=np.array([row for part in rows for row in part], np.int32),
        logits_start=np.concatenate([[0], np.cumsum(num_rows)]).astype(np.int32),
        adapter_ids=np.zeros(len(work), np.int32),
        sampling=SamplingBatch(np.zeros(sum(num_rows), SAMPLING_ROW), np.zeros(sum(num_rows), np.int64)),
    )


def run_work(runner: LogitsModelRunner, work: Sequence[Work[S]], batch: Batch) -> list[Row[S]]:
    """Runs one step, `batch` being the packed `work`; the wanted rows. Counts the tokens as computed."""
    logits = runner.forward(batch).copy()
    places = [(item.sequence, position) for item in work for position in item.wanted_positions]
    assert logits.shape == (len(places), runner.model_info.vocab_size)
    assert logits.dtype == np.float32
    for item in work:
        item.sequence.num_computed += item.num_tokens
    return [(sequence, position, row) for (sequence, position), row in zip(places, logits, strict=True)]


class Oracle:
    """The reference's logits for known sequences, each computed once: a row does not depend on the tokens behind it."""

    def __init__(self, reference: ReferenceModel) -> None:
        self.reference = reference
        self._logits = cache(lambda token_ids: reference.logits(token_ids))

    def check(self, rows: Sequence[Row[S]], *, atol: float) -> None:
        """Compares wanted rows."""
        for sequence, position, logits in rows:
            expected = self._logits(tuple(sequence.tokens))[position]
            np.testing.assert_allclose(logits, expected, atol=atol, rtol=0)
