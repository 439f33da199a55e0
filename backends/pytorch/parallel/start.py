"""Starts the processes of a divided model and brings them together.

In: a checkpoint and how many processes, or a function that loads a rank's part. Out: one runner. All that a user may
have got wrong is found out before the first process is started.
"""

import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from backends.pytorch.device_runner import DeviceRunner
from backends.pytorch.devices import choose_device, num_cuda_devices
from backends.pytorch.load import load_runner
from backends.pytorch.options import TorchOptions
from backends.pytorch.parallel.collective import Collective
from backends.pytorch.parallel.device_runner import ParallelDeviceRunner
from backends.pytorch.parallel.division import Rank, geometry_part
from backends.pytorch.parallel.meeting import choose_collective, make_collective, prepare_meeting
from backends.pytorch.parallel.messages import Join, Load, LoadPart
from backends.pytorch.parallel.runner import ParallelRunner
from backends.pytorch.parallel.workers import Workers
from backends.pytorch.step_limits import StepLimits
from nanovllm.architectures import Geometry
from nanovllm.checkpoint import Checkpoint
from nanovllm.checkpoint_decoder import read_decoder
from nanovllm.errors import BackendError, ConfigError

__all__ = ["load_parallel_runner", "start_ranks"]


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
    device = choose_device(options, num_cuda_devices(), Rank(0, size))
    collective = choose_collective(options.collective, device.type)
    load = partial(
        load_runner,
        checkpoint,
        name=name,
        options=options,
        num_threads=max(1, num_threads // size),
        limits=limits,
        max_model_len=max_model_len,
    )
    return start_ranks(load, read_decoder(checkpoint, max_model_len).geometry, size=size, collective=collective)


def start_ranks(load: LoadPart, geometry: Geometry, *, size: int, collective: str) -> ParallelRunner:
    """load: of each rank's part. geometry: of the whole model. collective: the kind, from `choose_collective`."""
    geometry_part(geometry, Rank(0, size))  # before processes are started for nothing
    with tempfile.TemporaryDirectory(prefix="nanovllm-") as folder:
        prepare_meeting(collective, Path(folder), size)
        first, *others = [
            Load(rank=Rank(number, size), rendezvous=Path(folder), collective=collective, load=load)
            for number in range(size)
        ]
        end = make_collective(collective, first.rank, first.rendezvous)
        workers = Workers(others, end.abort)
        try:
            local = load(collective=end)
            _meet(end, workers)
        except BaseException:
            workers.close()
            end.leave()
            raise
    info = replace(local.model_info, num_heads=geometry.num_heads, num_kv_heads=geometry.num_kv_heads)
    if isinstance(local, DeviceRunner):
        return ParallelDeviceRunner(local, end, workers, info)
    return ParallelRunner(local, end, workers, info)


def _meet(collective: Collective, workers: Workers) -> None:
    """Connects rank 0 with the others, once they have loaded their parts."""
    workers.wait_for_answers()
    workers.send(Join())
    try:
        collective.join()
    except (RuntimeError, OSError) as error:
        workers.check()
        raise BackendError(f"the processes of the model do not find each other: {error}") from error
    workers.wait_for_answers()
