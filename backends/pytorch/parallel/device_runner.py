"""ParallelDeviceRunner: a model that several devices compute together, a process each.

In: a `Batch`. Out: a `PendingStep`. A step is sent to the other ranks when it is submitted, and no host waits for a
device before somebody asks for the result, as with one device.
"""

from backends.pytorch.device_runner import DeviceRunner
from backends.pytorch.parallel.collective import Collective
from backends.pytorch.parallel.messages import MeasureMemory
from backends.pytorch.parallel.runner import ParallelRunner
from backends.pytorch.parallel.workers import Workers
from nanovllm.batch import Batch, StepOutput
from nanovllm.errors import BackendError
from nanovllm.model_info import ModelInfo
from nanovllm.plugins.interfaces import PendingStep

__all__ = ["ParallelDeviceRunner"]


class ParallelDeviceRunner(ParallelRunner):
    """As `ParallelRunner`; local: the part of rank 0, which samples."""

    overlaps = True

    def __init__(self, local: DeviceRunner, collective: Collective, workers: Workers, model_info: ModelInfo) -> None:
        super().__init__(local, collective, workers, model_info)
        self._device_runner = local

    def kv_bytes_per_block(self, block_size: int) -> int:
        """Of one rank: each device has memory of its own."""
        return self._device_runner.kv_bytes_per_block(block_size)

    def kv_memory_bytes(self) -> int | None:
        """Of the device that has least. Drops the KV cache."""
        self._is_allocated = False
        first = self._together(MeasureMemory(), self._device_runner.kv_memory_bytes)
        answers = self._workers.wait_for_answers()
        known = [size for size in (first, *(answer.memory_bytes for answer in answers)) if size is not None]
        return min(known) if known else None

    def submit(self, batch: Batch) -> PendingStep:
        """See `DeviceRunner.submit`."""
        return _ParallelStep(self._run_step(batch, self._device_runner.submit), self._workers)

    def execute(self, batch: Batch) -> StepOutput:
        return self.submit(batch).result()


class _ParallelStep:
    """What a step has come to is worth nothing where a rank has ended in it."""

    def __init__(self, pending: PendingStep, workers: Workers) -> None:
        self._pending = pending
        self._workers = workers

    def result(self) -> StepOutput:
        try:
            output = self._pending.result()
        except BackendError:
            self._workers.check()
            raise
        self._workers.check()
        return output
