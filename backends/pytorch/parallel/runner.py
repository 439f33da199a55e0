"""ParallelRunner: a model that several processes compute together, seen by the engine as one runner.

In: a `Batch`. Out: logits, which rank 0, this process, has in full. Knows nothing of how layers are cut.
"""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from backends.pytorch.parallel.collective import Collective
from backends.pytorch.parallel.interrupts import interrupts_after
from backends.pytorch.parallel.messages import Allocate, Command, Step, WarmUp
from backends.pytorch.parallel.workers import Workers
from backends.pytorch.runner import TorchRunner
from nanovllm.batch import Batch
from nanovllm.errors import BackendError
from nanovllm.model_info import ModelInfo
from nanovllm.plugins.interfaces import LogitsModelRunner

__all__ = ["ParallelRunner"]

T = TypeVar("T")


class ParallelRunner(LogitsModelRunner):
    """local: rank 0's part. model_info: of the whole model. workers: of the other ranks, which have all joined.

    Where a rank is lost, the step that is running and all that follow raise `BackendLostError`.
    """

    def __init__(self, local: TorchRunner, collective: Collective, workers: Workers, model_info: ModelInfo) -> None:
        self.model_info = model_info
        self.preferred_block_size = local.preferred_block_size
        self._local = local
        self._collective = collective
        self._workers = workers
        self._is_allocated = False

    def kv_bytes_per_block(self, block_size: int) -> int:
        """Of all ranks: they share the machine's memory."""
        return self._local.kv_bytes_per_block(block_size) * self._collective.rank.size

    def allocate_kv_cache(self, num_blocks: int, block_size: int) -> None:
        self._workers.check()
        self._is_allocated = False
        self._local.allocate_pools(num_blocks, block_size)
        self._workers.send(Allocate(num_blocks, block_size))
        self._workers.wait_for_answers()
        self._together(WarmUp(), self._local.warm_up)
        self._workers.wait_for_answers()
        self._is_allocated = True

    def forward(self, batch: Batch) -> npt.NDArray[np.float32]:
        """See `TorchRunner.forward`."""
        return self._run_step(batch, self._local.forward)

    def close(self) -> None:
        self._workers.close()
        self._local.close()
        self._collective.leave()

    def _run_step(self, batch: Batch, compute: Callable[[Batch], T]) -> T:
        """What rank 0 gets of a step that all ranks compute."""
        if not self._is_allocated:  # on no rank, and none may go ahead
            self._workers.check()
            raise BackendError("the KV cache is not allocated: call allocate_kv_cache first.")
        with interrupts_after():
            return self._together(Step(batch), lambda: compute(batch))

    def _together(self, command: Command, compute: Callable[[], T]) -> T:
        """What rank 0 computes while the others carry out `command`, in which ranks wait for each other."""
        self._workers.send(command)
        try:
            return compute()
        except BackendError as error:
            settled = self._workers.settle_failure(error)
            if settled is error:
                raise
            raise settled from error
        except BaseException as error:
            self._workers.lose(f"rank 0 was interrupted by {type(error).__name__}")
            raise
