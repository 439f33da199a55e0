"""Drives a dense runner as the engine does: sequences known by their ids, packed into batches of any mixture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from backends.ort.plugin import nanovllm_model_runners
from nanovllm.batch import SAMPLING_ROW, Batch, SamplingBatch
from nanovllm.config import EngineConfig
from nanovllm.plugins import LogitsModelRunner, ModelSource

Wanted = Literal["last", "all", "none"]


@dataclass
class DenseSequence:
    """tokens: all, known from the start. num_computed: tokens that are in the cache."""

    seq_id: int
    tokens: list[int]
    num_computed: int = 0


@dataclass
class Work:
    """The next num_tokens of a sequence, and the rows of which logits are wanted."""

    sequence: DenseSequence
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


def pack(work: Sequence[Work], released: Sequence[int] = ()) -> Batch:
    """The batch of one step. Block tables and slots hold what no runner of sequences may read."""
    lens = np.array([item.num_tokens for item in work])
    query_start = np.concatenate([[0], np.cumsum(lens)])
    rows = [
        [query_start[i] + position - item.sequence.num_computed for position in item.wanted_positions]
        for i, item in enumerate(work)
    ]
    num_rows = [len(part) for part in rows]
    return Batch(
        seq_ids=[item.sequence.seq_id for item in work],
        released_seq_ids=list(released),
        token_ids=np.concatenate([np.array(item.sequence.tokens)[item.positions] for item in work]).astype(np.int64),
        positions=np.concatenate([item.positions for item in work]).astype(np.int64),
        query_start=query_start.astype(np.int32),
        context_lens=np.array([item.sequence.num_computed for item in work], np.int32),
        block_tables=np.full((len(work), 1), -(2**31), np.int32),
        slot_mapping=np.full(int(lens.sum()), -(2**31), np.int32),
        logits_indices=np.array([row for part in rows for row in part], np.int32),
        logits_start=np.concatenate([[0], np.cumsum(num_rows)]).astype(np.int32),
        adapter_ids=np.zeros(len(work), np.int32),
        sampling=SamplingBatch(np.zeros(sum(num_rows), SAMPLING_ROW), np.zeros(sum(num_rows), np.int64)),
    )


def step(
    runner: LogitsModelRunner, work: Sequence[Work], released: Sequence[int] = ()
) -> list[tuple[DenseSequence, int, npt.NDArray[np.float32]]]:
    """Runs one step; the wanted rows as (sequence, position, logits). Counts the tokens as computed."""
    logits = runner.forward(pack(work, released)).copy()
    places = [(item.sequence, position) for item in work for position in item.wanted_positions]
    assert logits.shape == (len(places), runner.model_info.vocab_size)
    assert logits.dtype == np.float32
    for item in work:
        item.sequence.num_computed += item.num_tokens
    return [(sequence, position, row) for (sequence, position), row in zip(places, logits, strict=True)]


def load_dense_runner(folder: Path, **options: object) -> LogitsModelRunner:
    """The runner that the plugin makes for `folder`; its KV cache is not allocated yet."""
    plugin = next(record for record in nanovllm_model_runners() if record.name == "onnxruntime")
    config = EngineConfig(model=str(folder), num_threads=1, backend_options=options)
    runner = plugin.factory(ModelSource(str(folder), folder), config)
    assert isinstance(runner, LogitsModelRunner)
    return runner
