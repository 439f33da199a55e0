"""TorchRunner: runs steps of a recorded program over a paged KV cache.

In: a `Batch`. Out: logits of the wanted rows. Knows nothing about scheduling, sampling and the model's family.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from backends.pytorch.attention import PagedAttention
from backends.pytorch.program import Program, StepInputs
from backends.pytorch.rotary import rotation
from nanovllm.architectures import Rope
from nanovllm.batch import Batch
from nanovllm.errors import BackendError, KVCacheError
from nanovllm.model_info import ModelInfo
from nanovllm.plugins.interfaces import LogitsModelRunner
from nanovllm.resources import available_memory_bytes

__all__ = ["TorchRunner"]


class TorchRunner(LogitsModelRunner):
    """Model runner over one program; a step of chunks and decodes runs whole.

    ropes: whose rotations the program reads, in its order. attention: owns the KV cache. num_threads: compute threads.
    """

    def __init__(
        self,
        program: Program,
        ropes: list[Rope],
        attention: PagedAttention[Any],
        model_info: ModelInfo,
        *,
        device: torch.device,
        num_threads: int,
    ) -> None:
        self.model_info = model_info
        self.preferred_block_size = model_info.kv_cache.block_size
        self._program: Program | None = program
        self._ropes = ropes
        self._attention = attention
        self._device = device
        self._num_threads = num_threads
        self._logits = torch.empty(0, model_info.vocab_size)

    def kv_bytes_per_block(self, block_size: int) -> int:
        info = self.model_info
        item_bytes: int = getattr(torch, info.dtype).itemsize
        return info.num_layers * 2 * block_size * info.num_kv_heads * info.head_dim * item_bytes

    def allocate_kv_cache(self, num_blocks: int, block_size: int) -> None:
        self.allocate_pools(num_blocks, block_size)
        self.warm_up()

    def allocate_pools(self, num_blocks: int, block_size: int) -> None:
        """Allocates and touches the pools, so that no step pays for page faults; earlier pools are dropped. Raises
        `KVCacheError`."""
        self._open_program()
        self._attention.free()
        num_bytes, free = num_blocks * self.kv_bytes_per_block(block_size), available_memory_bytes()
        if self._device.type == "cpu" and num_bytes > free:
            raise KVCacheError(_no_memory(num_blocks, block_size, num_bytes, f"{free / 2**20:,.0f} MiB are free"))
        try:
            self._attention.allocate(num_blocks, block_size)
        except (RuntimeError, MemoryError) as error:
            self._attention.free()
            raise KVCacheError(_no_memory(num_blocks, block_size, num_bytes, "the system refuses that")) from error

    def warm_up(self) -> None:
        """Does beforehand what the first steps over new pools would have to wait for. Raises `BackendError`."""

    def follow(self, batch: Batch) -> None:
        """This rank's share of a step of which rank 0 has the logits; may return before it is done. Raises
        `BackendError`."""
        self.forward(batch)

    def forward(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Logits, float32 (num_logits, vocab_size), in memory that the next call reuses. Raises `BackendError`."""
        program = self._open_program()
        if not self._attention.is_allocated:
            raise BackendError("the KV cache is not allocated: call allocate_kv_cache first.")
        if torch.get_num_threads() != self._num_threads:
            torch.set_num_threads(self._num_threads)  # another runner of this process has its own number
        try:
            logits = program.run(self._inputs(batch))
        except (RuntimeError, IndexError, ValueError) as error:
            raise BackendError(f"torch failed in a step of {batch.num_tokens} tokens: {error}") from error
        if logits is None:
            return np.empty((0, self.model_info.vocab_size), np.float32)
        if len(self._logits) < len(logits):
            self._logits = torch.empty(max(len(logits), 2 * len(self._logits)), logits.shape[1])
        array: npt.NDArray[np.float32] = self._logits[: len(logits)].copy_(logits).numpy()
        return array

    def close(self) -> None:
        self._attention.free()
        self._program = None
        self._logits = torch.empty(0, self.model_info.vocab_size)

    @torch.inference_mode()
    def _inputs(self, batch: Batch) -> StepInputs:
        token_ids, positions, wanted = (
            torch.tensor(array, dtype=torch.int64, device=self._device)
            for array in (batch.token_ids, batch.positions, batch.logits_indices)
        )
        return StepInputs(
            token_ids=token_ids,
            positions=positions,
            wanted=wanted,
            rotations=[rotation(rope, positions) for rope in self._ropes],
            attention_plan=self._attention.plan(batch),
        )

    def _open_program(self) -> Program:
        if self._program is None:
            raise BackendError("the runner is closed; build a new one.")
        return self._program


def _no_memory(num_blocks: int, block_size: int, num_bytes: int, why: str) -> str:
    return (
        f"{num_blocks} KV blocks of {block_size} tokens take {num_bytes / 2**20:,.0f} MiB; {why}. Lower num_kv_blocks, "
        "kv_cache_memory_bytes or max_num_seqs."
    )
