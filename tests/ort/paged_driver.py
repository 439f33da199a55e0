"""Drives a paged runner as the engine does: sequences over scattered blocks, packed into batches of any mixture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backends.ort.plugin import nanovllm_model_runners
from nanovllm.batch import Batch
from nanovllm.config import EngineConfig, KVCacheDtype
from nanovllm.plugins import LogitsModelRunner, ModelSource
from tests.packed_steps import Row, Wanted, Work, pack_work, run_work

__all__ = ["PagedSequence", "Wanted", "Work", "load_runner", "pack", "step"]


@dataclass
class PagedSequence:
    """tokens: all, known from the start. blocks: its block table. num_computed: tokens that are in the cache."""

    tokens: list[int]
    blocks: list[int]
    num_computed: int = 0


def pack(work: Sequence[Work[PagedSequence]], block_size: int) -> Batch:
    """The batch of one step. Block tables are wider than needed, as an engine's may be, and padded with 0."""
    tables = np.zeros((len(work), 2 + max(len(item.sequence.blocks) for item in work)), np.int32)
    slots = []
    for table, item in zip(tables, work, strict=True):
        table[: len(item.sequence.blocks)] = item.sequence.blocks
        slots.append(table[item.positions // block_size] * block_size + item.positions % block_size)
    slot_mapping = np.concatenate(slots).astype(np.int32)
    return pack_work(work, seq_ids=list(range(len(work))), block_tables=tables, slot_mapping=slot_mapping)


def step(runner: LogitsModelRunner, work: Sequence[Work[PagedSequence]], block_size: int) -> list[Row[PagedSequence]]:
    """Runs one step; the wanted rows. Counts the tokens as computed."""
    return run_work(runner, work, pack(work, block_size))


def load_runner(folder: Path, kv_cache_dtype: KVCacheDtype = "auto", **options: object) -> LogitsModelRunner:
    """The runner that the plugin makes for `folder`; its KV cache is not allocated yet."""
    (plugin,) = nanovllm_model_runners()
    config = EngineConfig(model=str(folder), num_threads=1, kv_cache_dtype=kv_cache_dtype, backend_options=options)
    runner = plugin.factory(ModelSource(str(folder), folder), config)
    assert isinstance(runner, LogitsModelRunner)
    return runner
