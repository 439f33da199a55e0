"""A device's process that ends ends the engine with an error that says so, and its steps are not believed."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from rank_driver import load_parallel_device, worker_ids

from backends.pytorch.parallel.device_runner import ParallelDeviceRunner
from nanovllm.errors import BackendLostError
from nanovllm.testing import write_checkpoint
from tests.pytorch.device_driver import Sequences, sampling_row

SOON_S = 8.0


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[ParallelDeviceRunner]:
    runner = load_parallel_device(write_checkpoint(tmp_path / "model"))
    yield runner
    runner.close()


def test_a_step_that_was_under_way_is_worth_nothing(runner: ParallelDeviceRunner) -> None:
    pending = runner.submit(started(runner).step({0: [1, 2, 3]}))
    (worker,) = worker_ids(os.getpid())
    os.kill(worker, signal.SIGKILL)
    worker_ids(os.getpid(), gone_within_s=SOON_S)
    time.sleep(0.2)  # until the engine's process has been told
    for call in (pending.result, partial(runner.submit, Sequences(sampling_row()).step({0: [1]}))):
        with pytest.raises(BackendLostError, match="rank 1 was killed by signal SIGKILL"):
            call()
    runner.close()
    assert worker_ids(os.getpid()) == []


def test_one_that_is_killed_while_others_wait_for_it_ends_their_step(runner: ParallelDeviceRunner) -> None:
    steps = started(runner)
    (worker,) = worker_ids(os.getpid())
    os.kill(worker, signal.SIGSTOP)
    timer = threading.Timer(0.5, partial(os.kill, worker, signal.SIGKILL))
    timer.start()
    start = time.monotonic()
    with pytest.raises(BackendLostError, match="rank 1 was killed"):
        runner.execute(steps.step({0: [1, 2, 3]}))
    assert time.monotonic() - start < SOON_S
    timer.join()


def test_a_closed_runner_says_so(runner: ParallelDeviceRunner) -> None:
    steps = started(runner)
    runner.close()
    runner.close()
    with pytest.raises(BackendLostError, match="closed"):
        runner.submit(steps.step({0: [1]}))


def started(runner: ParallelDeviceRunner) -> Sequences:
    """One greedy sequence, for which the runner has room."""
    steps = Sequences(sampling_row())
    runner.allocate_kv_cache(steps.total_blocks, steps.block_size)
    return steps
