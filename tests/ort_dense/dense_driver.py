"""Drives a dense runner as the engine does: sequences known by their ids, packed into batches of any mixture."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nanovllm.batch import Batch
from nanovllm.plugins import LogitsModelRunner
from tests.ort.paged_driver import load_runner
from tests.packed_steps import Row, Work, pack_work, run_work

__all__ = ["DenseSequence", "Work", "load_runner", "pack", "step"]


@dataclass
class DenseSequence:
    """tokens: all, known from the start. num_computed: tokens that are in the cache."""

    seq_id: int
    tokens: list[int]
    num_computed: int = 0


def pack(work: Sequence[Work[DenseSequence]], released: Sequence[int] = ()) -> Batch:
    """The batch of one step. Block tables and slots hold what no runner of sequences may read."""
    nothing = -(2**31)
    return pack_work(
        work,
        seq_ids=[item.sequence.seq_id for item in work],
        block_tables=np.full((len(work), 1), nothing, np.int32),
        slot_mapping=np.full(sum(item.num_tokens for item in work), nothing, np.int32),
        released=released,
    )


def step(
    runner: LogitsModelRunner, work: Sequence[Work[DenseSequence]], released: Sequence[int] = ()
) -> list[Row[DenseSequence]]:
    """Runs one step; the wanted rows. Counts the tokens as computed."""
    return run_work(runner, work, pack(work, released))
