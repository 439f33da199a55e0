"""A runner that keeps the logits that pass through it."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nanovllm import RequestOutput
from nanovllm.batch import Batch
from nanovllm.model_info import ModelInfo
from nanovllm.plugins import LogitsModelRunner

__all__ = ["Continuation", "RecordingRunner"]

Continuation = tuple[list[int], list[int], npt.NDArray[np.float32]]
"""A prompt, the tokens that came after it, and the logits that each of these was chosen by."""


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

    def continuations(self, prompts: Sequence[list[int]], outputs: Sequence[RequestOutput]) -> list[Continuation]:
        """Of prompts that were run together since `logits` was empty, and what came of them."""
        found = []
        for seq_id, prompt, output in zip(sorted({key[0] for key in self.logits}), prompts, outputs, strict=True):
            tokens = list(output.outputs[0].token_ids)
            rows = [self.logits[seq_id, len(prompt) - 1 + i] for i in range(len(tokens))]
            found.append((list(prompt), tokens, np.stack(rows)))
        return found

    def close(self) -> None:
        self.runner.close()
