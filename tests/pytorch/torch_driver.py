"""Runners of the torch backend for tests, and one that keeps the logits that pass through it."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from backends.pytorch.plugin import nanovllm_model_runners
from nanovllm.batch import Batch
from nanovllm.config import EngineConfig
from nanovllm.model_info import ModelInfo
from nanovllm.plugins import LogitsModelRunner, ModelSource

__all__ = ["RecordingRunner", "load_runner"]


def load_runner(folder: Path, *, max_model_len: int | None = None, **options: object) -> LogitsModelRunner:
    """The runner that the plugin makes for `folder`, float32 and on the CPU unless the options say otherwise."""
    (plugin,) = nanovllm_model_runners()
    options = {"dtype": "float32", "device": "cpu", **options}
    config = EngineConfig(model=str(folder), num_threads=1, max_model_len=max_model_len, backend_options=options)
    runner = plugin.factory(ModelSource(str(folder), folder), config)
    assert isinstance(runner, LogitsModelRunner)
    return runner


class RecordingRunner(LogitsModelRunner):
    """Passes steps on to another runner and keeps the logits, by (sequence, position)."""

    def __init__(self, runner: LogitsModelRunner) -> None:
        self.runner = runner
        self.model_info: ModelInfo = runner.model_info
        self.preferred_block_size = runner.preferred_block_size
        self.logits: dict[tuple[int, int], npt.NDArray[np.float32]] = {}

    def kv_bytes_per_block(self, block_size: int) -> int:
        return self.runner.kv_bytes_per_block(block_size)

    def allocate_kv_cache(self, num_blocks: int, block_size: int) -> None:
        self.runner.allocate_kv_cache(num_blocks, block_size)

    def forward(self, batch: Batch) -> npt.NDArray[np.float32]:
        logits = self.runner.forward(batch).copy()
        for sequence, seq_id in enumerate(batch.seq_ids):
            for row in range(batch.logits_start[sequence], batch.logits_start[sequence + 1]):
                self.logits[seq_id, int(batch.positions[batch.logits_indices[row]])] = logits[row]
        return logits

    def close(self) -> None:
        self.runner.close()
