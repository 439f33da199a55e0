"""Drives a runner as the engine does: sequences over scattered blocks, packed into batches of any mixture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from backends.ort.plugin import nanovllm_model_runners
from nanovllm.batch import SAMPLING_ROW, Batch, SamplingBatch
from nanovllm.config import EngineConfig, KVCacheDtype
from nanovllm.plugins import LogitsModelRunner, ModelSource

Wanted = Literal["last", "all", "none"]


@dataclass
class PagedSequence:
    """tokens: all, known from the start. blocks: its block table. num_computed: tokens that are in the cache."""

    tokens: list[int]
    blocks: list[int]
    num_computed: int = 0


@dataclass
class Work:
    """The next num_tokens of a sequence, and the rows of which logits are wanted."""

    sequence: PagedSequence
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


def pack(work: Sequence[Work], block_size: int) -> Batch:
    """The batch of one step. Block tables are wider than needed, as an engine's may be, and padded with 0."""
    lens = np.array([item.num_tokens for item in work])
    query_start = np.concatenate([[0], np.cumsum(lens)])
    tables = np.zeros((len(work), 2 + max(len(item.sequence.blocks) for item in work)), np.int32)
    slots, rows = [], []
    for i, item in enumerate(work):
        tables[i, : len(item.sequence.blocks)] = item.sequence.blocks
        slots.append(tables[i, item.positions // block_size] * block_size + item.positions % block_size)
        rows.append([query_start[i] + p - item.sequence.num_computed for p in item.wanted_positions])
    num_rows = [len(part) for part in rows]
    return Batch(
        seq_ids=list(range(len(work))),
        released_seq_ids=[],
        token_ids=np.concatenate([np.array(item.sequence.tokens)[item.positions] for item in work]).astype(np.int64),
        positions=np.concatenate([item.positions for item in work]).astype(np.int64),
        query_start=query_start.astype(np.int32),
        context_lens=np.array([item.sequence.num_computed for item in work], np.int32),
        block_tables=tables,
        slot_mapping=np.concatenate(slots).astype(np.int32),
        logits_indices=np.array([row for part in rows for row in part], np.int32),
        logits_start=np.concatenate([[0], np.cumsum(num_rows)]).astype(np.int32),
        adapter_ids=np.zeros(len(work), np.int32),
        sampling=SamplingBatch(np.zeros(sum(num_rows), SAMPLING_ROW), np.zeros(sum(num_rows), np.int64)),
    )


def step(
    runner: LogitsModelRunner, work: Sequence[Work], block_size: int
) -> list[tuple[PagedSequence, int, npt.NDArray[np.float32]]]:
    """Runs one step; the wanted rows as (sequence, position, logits). Counts the tokens as computed."""
    logits = runner.forward(pack(work, block_size)).copy()
    places = [(item.sequence, position) for item in work for position in item.wanted_positions]
    assert logits.shape == (len(places), runner.model_info.vocab_size)
    for item in work:
        item.sequence.num_computed += item.num_tokens
    return [(sequence, position, row) for (sequence, position), row in zip(places, logits, strict=True)]


def load_runner(folder: Path, kv_cache_dtype: KVCacheDtype = "auto", **options: object) -> LogitsModelRunner:
    """The runner that the plugin makes for `folder`; its KV cache is not allocated yet."""
    (plugin,) = nanovllm_model_runners()
    config = EngineConfig(model=str(folder), num_threads=1, kv_cache_dtype=kv_cache_dtype, backend_options=options)
    runner = plugin.factory(ModelSource(str(folder), folder), config)
    assert isinstance(runner, LogitsModelRunner)
    return runner
