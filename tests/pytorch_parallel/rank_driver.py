"""Ranks for tests: a thread each in this process, or as the plugin makes them, and the processes that it started."""

import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from backends.pytorch.device_runner import DeviceRunner
from backends.pytorch.load import load_runner
from backends.pytorch.options import TorchOptions
from backends.pytorch.parallel.collective import Collective
from backends.pytorch.parallel.device_runner import ParallelDeviceRunner
from backends.pytorch.parallel.division import Rank
from backends.pytorch.parallel.meeting import make_collective, prepare_meeting
from backends.pytorch.parallel.start import start_ranks
from backends.pytorch.plugin import nanovllm_model_runners
from backends.pytorch.runner import TorchRunner
from backends.pytorch.step_limits import StepLimits
from nanovllm.checkpoint import Checkpoint
from nanovllm.checkpoint_decoder import read_decoder
from nanovllm.config import EngineConfig
from nanovllm.plugins import LogitsModelRunner, ModelSource
from tests.pytorch.device_driver import load_device

__all__ = [
    "LIMITS",
    "join_ranks",
    "load_parallel",
    "load_parallel_device",
    "load_ranks",
    "on_every_rank",
    "worker_ids",
]

T = TypeVar("T")

LIMITS = StepLimits(max_num_seqs=16, max_num_batched_tokens=512, max_num_logits=256, max_model_len=512)


def load_parallel(folder: Path, size: int = 2, *, num_threads: int = 2, **options: Any) -> LogitsModelRunner:
    """The runner that the plugin makes for `size` processes, in float32 unless the options say otherwise."""
    (plugin,) = nanovllm_model_runners()
    config = EngineConfig(
        model=str(folder),
        num_threads=num_threads,
        tensor_parallel_size=size,
        backend_options={"dtype": "float32", **options},
    )
    runner = plugin.factory(ModelSource(str(folder), folder), config)
    assert isinstance(runner, LogitsModelRunner)
    return runner


def load_parallel_device(
    folder: Path,
    size: int = 2,
    *,
    collective: str = "gloo",
    load: Callable[..., DeviceRunner] = load_device,
    **given: Any,
) -> ParallelDeviceRunner:
    """Device runners on the CPU, a process each. given: for `load`, a function that other processes can import."""
    geometry = read_decoder(Checkpoint(folder), None).geometry
    runner = start_ranks(partial(load, folder, **given), geometry, size=size, collective=collective)
    assert isinstance(runner, ParallelDeviceRunner)
    return runner


def join_ranks(kind: str, size: int, folder: Path) -> list[Collective]:
    """The ends of all ranks, which have met in `folder`. kind: "shared_memory" or "gloo"."""
    prepare_meeting(kind, folder, size)
    collectives = [make_collective(kind, Rank(number, size), folder) for number in range(size)]
    on_every_rank([collective.join for collective in collectives])
    return collectives


def load_ranks(folder: Path, collectives: list[Collective], **given: Any) -> list[TorchRunner]:
    """The parts of all ranks, in float32 unless the options say otherwise."""
    checkpoint = Checkpoint(folder)
    options = TorchOptions(**{"dtype": "float32", **given})
    return [
        load_runner(checkpoint, name="model", options=options, num_threads=1, limits=LIMITS, collective=collective)
        for collective in collectives
    ]


def on_every_rank(calls: list[Callable[[], T]]) -> list[T]:
    """What the calls return, each made in a thread of its own. Raises the first exception."""
    results: dict[int, T] = {}
    errors: list[Exception] = []

    def call(number: int) -> None:
        try:
            results[number] = calls[number]()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(calls))]


def worker_ids(parent: int | None = None, *, gone_within_s: float = 0.0) -> list[int]:
    """Ids of the ranks' processes that live, of one parent or of all. gone_within_s: waits that long for them to go."""
    deadline = time.monotonic() + gone_within_s
    while True:
        command = ["ps", "-A", "-ww", "-o", "pid=,ppid=,args="]  # ww: however long the interpreter's path is
        listing = subprocess.run(command, capture_output=True, text=True, check=True)
        rows = [line.split(None, 2) for line in listing.stdout.splitlines()]
        found = [
            int(pid)
            for pid, ppid, args in rows
            if "backends.pytorch.parallel.worker" in args and parent in (None, int(ppid))
        ]
        if not found or time.monotonic() >= deadline:
            return found
        time.sleep(0.05)
