"""A rank that ends, fails or cannot load ends the engine with an error that says so, soon, and nothing is left over."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from rank_driver import LIMITS, load_parallel, worker_ids

from backends.pytorch.load import load_runner
from backends.pytorch.options import TorchOptions
from backends.pytorch.parallel.division import Rank
from backends.pytorch.parallel.messages import Load
from backends.pytorch.parallel.workers import Workers
from nanovllm import LLM, SamplingParams
from nanovllm.checkpoint import Checkpoint
from nanovllm.errors import BackendError, BackendLostError, CheckpointError, ConfigError, NanoVLLMError
from nanovllm.plugins import LogitsModelRunner
from nanovllm.testing import teacher_forced_logits, tiny_config, write_checkpoint

SOON_S = 8.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), tiny_config())


@pytest.fixture
def runner(folder: Path, request: pytest.FixtureRequest) -> Iterator[LogitsModelRunner]:
    runner = load_parallel(folder, collective=getattr(request, "param", "auto"))
    yield runner
    runner.close()


def test_a_rank_that_was_killed_ends_all_steps_to_come(runner: LogitsModelRunner) -> None:
    teacher_forced_logits(runner, [1, 2, 3])
    (worker,) = worker_ids(os.getpid())
    os.kill(worker, signal.SIGKILL)
    error = error_within(SOON_S, lambda: teacher_forced_logits(runner, [1, 2, 3]))
    assert isinstance(error, BackendLostError)
    assert "rank 1 was killed by signal SIGKILL" in str(error)
    for _ in range(3):
        again = error_within(0.5, lambda: teacher_forced_logits(runner, [1]))
        assert str(again) == str(error)
    runner.close()
    runner.close()
    assert worker_ids(os.getpid()) == []


@pytest.mark.parametrize("runner", ["shared_memory", "gloo"], indirect=True)
def test_a_rank_that_is_killed_while_others_wait_for_it_ends_their_step(runner: LogitsModelRunner) -> None:
    teacher_forced_logits(runner, [1, 2, 3])
    (worker,) = worker_ids(os.getpid())
    os.kill(worker, signal.SIGSTOP)
    timer = threading.Timer(0.5, partial(os.kill, worker, signal.SIGKILL))
    runner.allocate_kv_cache = lambda *_: None  # type: ignore[method-assign]  # it would wait for the stopped rank
    timer.start()
    error = error_within(SOON_S, lambda: teacher_forced_logits(runner, [1, 2, 3]))
    timer.join()
    assert isinstance(error, BackendLostError)
    assert "rank 1 was killed" in str(error)


def test_signals_to_the_whole_group_are_the_engines_business(runner: LogitsModelRunner) -> None:
    (worker,) = worker_ids(os.getpid())
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker, number)
    assert len(teacher_forced_logits(runner, [1, 2, 3])) == 3


def test_closing_twice_leaves_no_process_and_a_closed_runner_says_so(folder: Path) -> None:
    runner = load_parallel(folder)
    assert len(worker_ids(os.getpid())) == 1
    runner.close()
    runner.close()
    assert worker_ids(os.getpid()) == []
    with pytest.raises(BackendError, match="closed"):
        teacher_forced_logits(runner, [1])


def test_a_model_that_is_dropped_leaves_no_process(folder: Path) -> None:
    load_parallel(folder)
    assert worker_ids(os.getpid(), gone_within_s=SOON_S) == []


def test_an_llm_ends_with_the_error() -> None:
    with LLM("tiny-chat", tensor_parallel_size=2, num_threads=2) as llm:
        stream = llm.stream("Hello", SamplingParams(max_tokens=500, ignore_eos=True))
        next(stream)
        (worker,) = worker_ids(os.getpid())
        os.kill(worker, signal.SIGKILL)
        assert isinstance(error_within(SOON_S, lambda: list(stream)), BackendLostError)
        assert isinstance(error_within(1, lambda: llm.generate("Hello")), BackendLostError)
    assert worker_ids(os.getpid()) == []


def test_where_the_engines_process_is_killed_the_others_end(tmp_path: Path, folder: Path) -> None:
    script = """
import sys, time
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from rank_driver import load_parallel
runner = load_parallel(Path(sys.argv[1]))
print("loaded", flush=True)
time.sleep(100)
"""
    command = [sys.executable, "-c", script, str(folder), *[entry for entry in sys.path if entry]]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loaded\n"
        workers = worker_ids(process.pid)
        process.kill()
    assert len(workers) == 1
    deadline = time.monotonic() + SOON_S
    while is_alive(workers[0]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(workers[0])
    assert list(tmp_path.iterdir()) == []


def is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(process_id)], capture_output=True, text=True, check=False)
    return not state.stdout.strip().startswith("Z")  # nobody may be there to reap it once its parent is gone


def test_a_rank_that_cannot_load_says_why(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", tiny_config())
    config = tiny_config(tie_word_embeddings=False)  # whose head is not there
    (folder / "config.json").write_text(json.dumps(config))
    load = Load(
        rank=Rank(1, 2),
        rendezvous=tmp_path,
        collective="shared_memory",
        load=partial(
            load_runner, Checkpoint(folder), name="model", options=TorchOptions(), num_threads=1, limits=LIMITS
        ),
    )
    workers = Workers([load])
    error = error_within(30, workers.wait_for_answers)
    workers.close()
    assert isinstance(error, CheckpointError)
    assert "lm_head.weight" in str(error)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        load_parallel(folder)
    assert worker_ids(os.getpid()) == []


def test_sizes_that_cannot_be_divided_start_no_process(folder: Path) -> None:
    with pytest.raises(ConfigError, match="tensor_parallel_size is 4, and the model has 6 heads"):
        load_parallel(folder, 4)
    assert worker_ids(os.getpid()) == []


def error_within(seconds: float, call: Callable[[], object]) -> NanoVLLMError:
    """The error that `call` raises, which must not take longer."""
    start = time.monotonic()
    with pytest.raises(NanoVLLMError) as raised:
        call()
    assert time.monotonic() - start < seconds
    return raised.value
