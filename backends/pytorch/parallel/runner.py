"""ParallelRunner: a model that several processes compute together, seen by the engine as one runner.

In: a `Batch`. Out: logits, which rank 0, this process, has in full. Knows nothing of how layers are cut.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from backends.pytorch.load import load_runner, read_decoder
from backends.pytorch.options import TorchOptions
from backends.pytorch.parallel.collective import Collective
from backends.pytorch.parallel.division import Rank, geometry_part
from backends.pytorch.parallel.interrupts import interrupts_after
from backends.pytorch.parallel.meeting import make_collective, prepare_meeting
from backends.pytorch.parallel.messages import Allocate, Join, Load, Step
from backends.pytorch.parallel.workers import Workers
from backends.pytorch.runner import TorchRunner
from backends.pytorch.step_limits import StepLimits
from nanovllm.batch import Batch
from nanovllm.checkpoint import Checkpoint
from nanovllm.errors import BackendError, ConfigError
from nanovllm.model_info import ModelInfo
from nanovllm.plugins.interfaces import LogitsModelRunner

__all__ = ["ParallelRunner", "load_parallel_runner"]


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
        self._local.allocate_kv_cache(num_blocks, block_size)
        self._workers.send(Allocate(num_blocks, block_size))
        self._workers.wait_for_answers()
        self._is_allocated = True

    def forward(self, batch: Batch) -> npt.NDArray[np.float32]:
        """See `TorchRunner.forward`."""
        if not self._is_allocated:  # on no rank, and none may go ahead
            self._workers.check()
            raise BackendError("the KV cache is not allocated: call allocate_kv_cache first.")
        with interrupts_after():
            return self._forward(batch)

    def _forward(self, batch: Batch) -> npt.NDArray[np.float32]:
        self._workers.send(Step(batch))
        try:
            return self._local.forward(batch)
        except BackendError as error:
            settled = self._workers.settle_failure(error)
            if settled is error:
                raise
            raise settled from error
        except BaseException as error:
            self._workers.lose(f"a step of rank 0 was interrupted by {type(error).__name__}")
            raise

    def close(self) -> None:
        self._workers.close()
        self._collective.leave()
        self._local.close()


def load_parallel_runner(
    checkpoint: Checkpoint,
    *,
    size: int,
    name: str,
    options: TorchOptions,
    num_threads: int,
    limits: StepLimits,
    max_model_len: int | None = None,
) -> ParallelRunner:
    """size: processes, this one included. num_threads: of all of them together; the rest is as for `load_runner`."""
    if sys.platform == "win32":
        raise ConfigError(f"tensor_parallel_size is {size}; on Windows it must be 1.")
    geometry = read_decoder(checkpoint, max_model_len).geometry
    geometry_part(geometry, Rank(0, size))  # before processes are started for nothing
    with tempfile.TemporaryDirectory(prefix="nanovllm-") as folder:
        loads = [
            Load(
                rank=Rank(number, size),
                rendezvous=Path(folder),
                checkpoint=checkpoint,
                name=name,
                options=options,
                num_threads=max(1, num_threads // size),
                limits=limits,
                max_model_len=max_model_len,
            )
            for number in range(size)
        ]
        prepare_meeting(options.collective, Path(folder), size)
        workers = Workers(loads[1:])
        try:
            local, collective = _meet(loads[0], workers)
        except BaseException:
            workers.close()
            raise
    info = replace(local.model_info, num_heads=geometry.num_heads, num_kv_heads=geometry.num_kv_heads)
    return ParallelRunner(local, collective, workers, info)


def _meet(load: Load, workers: Workers) -> tuple[TorchRunner, Collective]:
    """Loads rank 0's part while the others load theirs, and connects them."""
    collective = make_collective(load.options.collective, load.rank, load.rendezvous)
    local = load_runner(
        load.checkpoint,
        name=load.name,
        options=load.options,
        num_threads=load.num_threads,
        limits=load.limits,
        max_model_len=load.max_model_len,
        collective=collective,
    )
    if local.model_info.device != "cpu":
        raise ConfigError(
            f"tensor_parallel_size is {load.rank.size}, and the device {local.model_info.device!r}; a model is divided "
            "on CPUs only. Set the option device='cpu', or leave tensor_parallel_size out."
        )
    workers.wait_for_answers()
    workers.send(Join())
    try:
        collective.join()
    except (RuntimeError, OSError) as error:
        workers.check()
        raise BackendError(f"the processes of the model do not find each other: {error}") from error
    workers.wait_for_answers()
    return local, collective
