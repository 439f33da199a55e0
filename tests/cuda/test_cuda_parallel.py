"""A model divided among two CUDA devices: the tokens of one, overlapped, through graphs, and a lost rank is noticed."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from backends.pytorch.parallel.device_runner import ParallelDeviceRunner
from nanovllm import LLM, SamplingParams
from nanovllm.batch import LogitsEdits
from nanovllm.errors import BackendLostError
from nanovllm.testing import ReferenceModel, teacher_forced_logits, tiny_config, write_checkpoint
from tests.pytorch.device_driver import Sequences, one_after_the_other, overlapped, sampling_row
from tests.pytorch.torch_driver import load_runner
from tests.pytorch_parallel.rank_driver import load_parallel, worker_ids

pytestmark = pytest.mark.cuda

SOON_S = 20.0
PROMPTS = {0: [1, 2, 3], 1: [4], 2: list(range(20))}
STEPS = [{0, 1, 2}, {1, 2}, {0}, {0, 1, 2}, {0, 1, 2}, {2, 1, 0}]
ROWS = np.concatenate([sampling_row(), sampling_row(temperature=0.9, seed=3), sampling_row(temperature=0.9)])


@pytest.fixture(autouse=True)
def _needs_two_devices(_needs_a_device: None) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device here; a model is divided among two")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    windows = {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1}
    return write_checkpoint(tmp_path / "model", tiny_config(**windows))


@pytest.fixture(params=[False, True], ids=["graphs", "enforce_eager"])
def runner(folder: Path, request: pytest.FixtureRequest) -> Iterator[ParallelDeviceRunner]:
    runner = load_parallel(folder, device="cuda", enforce_eager=request.param)
    assert isinstance(runner, ParallelDeviceRunner)
    yield runner
    runner.close()


def test_two_devices_give_the_logits_and_the_tokens_of_one(folder: Path, runner: ParallelDeviceRunner) -> None:
    tokens = np.random.default_rng(1).integers(0, 211, 50).tolist()
    logits = teacher_forced_logits(runner, tokens, block_size=16)
    np.testing.assert_allclose(logits, ReferenceModel(folder).logits(tokens), atol=1e-3, rtol=0)
    alone = load_runner(folder, device="cuda")
    for edits in ({}, {2: LogitsEdits(banned=np.arange(5))}):
        expected = one_after_the_other(alone, Sequences(ROWS, edits=edits), PROMPTS, STEPS)
        assert overlapped(runner, Sequences(ROWS, edits=edits), PROMPTS, STEPS) == expected


def test_a_rank_that_was_killed_ends_the_engine_though_the_devices_wait(runner: ParallelDeviceRunner) -> None:
    steps = Sequences(ROWS)
    runner.allocate_kv_cache(steps.total_blocks, steps.block_size)
    runner.execute(steps.step(PROMPTS))
    (worker,) = worker_ids(os.getpid())
    os.kill(worker, signal.SIGSTOP)
    pending = runner.submit(steps.step({i: [-1] for i in PROMPTS}))
    os.kill(worker, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(BackendLostError, match="rank 1 was killed"):
        pending.result()
    runner.close()
    assert time.monotonic() - start < SOON_S


def test_the_kv_cache_is_sized_from_both_devices_and_the_model_in_the_box_answers() -> None:
    options = {"device": "cuda", "gpu_memory_utilization": 0.3}
    with LLM("tiny-chat", backend="torch", tensor_parallel_size=2, backend_options=options) as llm:
        question = [[{"role": "user", "content": "What is the capital of France?"}]]
        (output,) = llm.chat(question, SamplingParams(temperature=0))
        assert output.outputs[0].text == "The capital of France is Paris."
