"""What only a CUDA device can show of its runner: sampling, overlap, memory."""

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from backends.pytorch.device_runner import DeviceRunner
from backends.pytorch.device_sampler import sampling_rows
from backends.pytorch.triton_kernels import draw_tokens
from nanovllm import LLM, SamplingParams
from nanovllm.batch import SAMPLING_ROW, LogitsEdits
from nanovllm.sampler import draw, uniform
from nanovllm.testing import tiny_config, write_checkpoint
from tests.architectures.family_configs import CASES
from tests.pytorch.device_driver import Sequences, one_after_the_other, overlapped, sampling_row
from tests.pytorch.torch_driver import load_runner

pytestmark = pytest.mark.cuda


def on_cuda(folder: Path, **options: object) -> DeviceRunner:
    runner = load_runner(folder, device="cuda", **options)
    assert isinstance(runner, DeviceRunner)
    return runner


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_device_draws_what_the_host_draws(dtype: torch.dtype) -> None:
    random = np.random.default_rng(3)
    logits = torch.from_numpy((random.standard_normal((200, 151_936)) * 3).astype(np.float32)).to(dtype)
    rows = np.zeros(200, SAMPLING_ROW)
    rows["temperature"] = random.choice([0, 0.6, 1.0], 200)
    rows["top_k"] = random.choice([0, 20], 200)
    rows["top_p"] = random.choice([0.8, 1.0], 200)
    rows["min_p"] = random.choice([0, 0.01], 200)
    rows["seed"] = random.integers(0, 2**63, 200)
    positions = np.arange(200)
    parameters = torch.from_numpy(sampling_rows(rows, positions)).cuda()
    tokens = draw_tokens(logits.cuda(), parameters).cpu().numpy()
    np.testing.assert_array_equal(tokens, draw(logits.float().numpy(), rows, uniform(rows["seed"], positions)))


@pytest.mark.parametrize("enforce_eager", [False, True])
def test_overlapped_steps_give_the_tokens_of_steps_one_after_the_other(tmp_path: Path, enforce_eager: bool) -> None:
    runner = on_cuda(write_checkpoint(tmp_path / "model"), enforce_eager=enforce_eager)
    rows = np.concatenate([sampling_row(), sampling_row(temperature=0.9, seed=3), sampling_row(temperature=0.9)])
    prompts = {0: [1, 2, 3], 1: [4], 2: list(range(20))}
    steps = [{0, 1, 2}, {1, 2}, {0}, {0, 1, 2}, {0, 1, 2}, {2, 1, 0}]
    for edits in ({}, {2: LogitsEdits(banned=np.arange(5))}):
        expected = one_after_the_other(runner, Sequences(rows, edits=edits), prompts, steps)
        assert overlapped(runner, Sequences(rows, edits=edits), prompts, steps) == expected


@pytest.mark.parametrize("enforce_eager", [False, True])
def test_the_kv_cache_keeps_within_the_share_of_the_device(tmp_path: Path, enforce_eager: bool) -> None:
    """Weights, pools, graphs and the largest steps together, beside what was there before."""
    share = 0.3
    gc.collect()
    torch.cuda.empty_cache()
    folder = write_checkpoint(tmp_path / "model", tiny_config(max_position_embeddings=4096))
    before, total = torch.cuda.mem_get_info()
    runner = on_cuda(folder, gpu_memory_utilization=share, enforce_eager=enforce_eager)
    num_bytes = runner.kv_memory_bytes()
    assert num_bytes is not None
    assert 0 < num_bytes < total * share
    runner.allocate_kv_cache(num_bytes // runner.kv_bytes_per_block(32), 32)
    steps = Sequences(np.concatenate([sampling_row(temperature=1, top_p=0.9)] * 8), block_size=32)
    runner.execute(steps.step({i: [1] * 64 for i in range(8)}))
    runner.execute(steps.step({i: [1] for i in range(8)}))
    after, _ = torch.cuda.mem_get_info()
    assert before - after <= total * share * 1.01
    runner.close()


def test_memory_does_not_grow_from_step_to_step(tmp_path: Path) -> None:
    runner = on_cuda(write_checkpoint(tmp_path / "model"))
    steps = Sequences(np.concatenate([sampling_row(temperature=1)] * 8), block_size=16, num_blocks=32)
    runner.allocate_kv_cache(steps.total_blocks, steps.block_size)

    def run(count: int) -> None:
        for step in range(count):
            runner.submit(steps.step({i: [5] for i in range(1 + step % 8)})).result()

    run(50)
    torch.cuda.synchronize()
    before = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
    run(300)
    torch.cuda.synchronize()
    assert (torch.cuda.memory_reserved(), torch.cuda.memory_allocated()) == before


def test_a_step_does_not_wait_for_the_device(tmp_path: Path) -> None:
    """Submitted behind a second of other work, it returns before that is done. Pinned memory for its results is there
    by then, and all kernels have been loaded: the driver may wait for either."""
    runner = on_cuda(write_checkpoint(tmp_path / "model"))
    steps = Sequences(np.concatenate([sampling_row()] * 4))
    runner.allocate_kv_cache(steps.total_blocks, steps.block_size)
    runner.execute(steps.step({i: [1, 2] for i in range(4)}))
    for _ in range(3):
        runner.execute(steps.step({i: [3] for i in range(4)}))
    busy, matrix = torch.cuda.Event(), torch.zeros(8192, 8192, device="cuda")
    for _ in range(100):
        torch.mm(matrix, matrix)
    busy.record()
    pending = runner.submit(steps.step({i: [-1] for i in range(4)}))
    assert not busy.query(), "submitting waited for the device"
    assert len(pending.result().token_ids) == 4
    assert busy.query()


def test_graphs_work_on_when_those_of_another_runner_are_gone(tmp_path: Path) -> None:
    """What a captured product needs, such as cuBLAS's workspace, is not the other's."""
    folder = write_checkpoint(tmp_path / "model", tiny_config(hidden_size=512, intermediate_size=2048))
    going, staying = (on_cuda(folder, dtype="bfloat16") for _ in range(2))
    steps = [Sequences(np.concatenate([sampling_row()] * 8)) for _ in range(2)]  # both begin anew
    for runner in (staying, going):
        runner.allocate_kv_cache(steps[0].total_blocks, steps[0].block_size)
    expected = [staying.execute(steps[0].step({i: [5 + i] for i in range(8)})).token_ids for _ in range(3)]
    going.close()
    del going
    gc.collect()
    torch.cuda.empty_cache()
    torch.zeros(2**27, device="cuda").fill_(float("nan"))  # in the place of whatever was given back
    assert [staying.execute(steps[1].step({i: [5 + i] for i in range(8)})).token_ids for _ in range(3)] == expected


def test_a_model_of_short_sequences_warms_up_within_its_table_of_positions(tmp_path: Path) -> None:
    (gpt2,) = (case.config for case in CASES if case.name == "gpt2")
    runner = on_cuda(write_checkpoint(tmp_path / "model", {**gpt2, "n_positions": 20}))
    runner.allocate_kv_cache(8, 16)
    torch.cuda.synchronize()
    assert len(runner.execute(Sequences(sampling_row()).step({0: [1, 2]})).token_ids[0]) == 1


def test_a_token_beyond_the_vocabulary_does_not_end_the_device(tmp_path: Path) -> None:
    from nanovllm.errors import BackendError

    runner = on_cuda(write_checkpoint(tmp_path / "model"))
    steps = Sequences(sampling_row())
    runner.allocate_kv_cache(steps.total_blocks, steps.block_size)
    step = steps.step({0: [1, 2]})
    with pytest.raises(BackendError, match="token id 1000000"):
        runner.execute(replace(step, token_ids=np.array([1, 10**6])))
    assert len(runner.execute(step).token_ids[0]) == 1


def test_the_model_in_the_box_answers() -> None:
    llm = LLM("tiny-chat", backend="torch", backend_options={"device": "cuda", "gpu_memory_utilization": 0.3})
    try:
        question = [[{"role": "user", "content": "What is the capital of France?"}]]
        (output,) = llm.chat(question, SamplingParams(temperature=0))
        assert output.outputs[0].text == "The capital of France is Paris."
    finally:
        llm.close()
