"""Device runners that are one model together give the tokens of one, overlapped or not.

Their devices are the CPU here, and gloo adds up; NCCL and the kernels of CUDA are in tests/cuda.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from invented_memory import LEFT_BYTES, load_uneven
from rank_driver import load_parallel_device

from backends.pytorch.device_runner import DeviceRunner
from backends.pytorch.parallel.device_runner import ParallelDeviceRunner
from nanovllm import SamplingParams
from nanovllm.batch import LogitsEdits
from nanovllm.errors import BackendError, BackendLostError
from nanovllm.plugins import ModelRunner
from nanovllm.testing import (
    ReferenceModel,
    make_engine,
    run_requests,
    teacher_forced_logits,
    tiny_config,
    write_checkpoint,
)
from tests.pytorch.device_driver import (
    ANY_PARAMS,
    RerunGraph,
    Sequences,
    a_failing_edit_costs_its_step_only,
    load_device,
    one_after_the_other,
    overlapped,
    sampling_row,
)

SOON_S = 8.0
WINDOWS = {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), tiny_config(**WINDOWS))


@pytest.fixture(scope="module", params=["graphs", "no graphs", "sums by shared memory"])
def runner(folder: Path, request: pytest.FixtureRequest) -> Iterator[ParallelDeviceRunner]:
    collective = "shared_memory" if "shared" in request.param else "gloo"
    capture = None if request.param == "no graphs" else RerunGraph
    runner = load_parallel_device(folder, collective=collective, capture=capture)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def alone(folder: Path) -> Iterator[DeviceRunner]:
    runner = load_device(folder)
    yield runner
    runner.close()


@settings(max_examples=15)
@given(data=st.data())
def test_any_requests_get_the_tokens_of_one_device(
    runner: ParallelDeviceRunner, alone: DeviceRunner, data: st.DataObject
) -> None:
    """Through an engine that submits steps ahead: chunks, mixed steps, rows that the host samples beside others."""
    lens = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=5), "prompt lengths")
    random = np.random.default_rng(data.draw(st.integers(0, 99), "seed"))
    prompts = [random.integers(0, 211, n).tolist() for n in lens]
    params = [data.draw(ANY_PARAMS) for _ in prompts]
    budget = data.draw(st.sampled_from([9, 17, 64]), "tokens of a step")
    results = [tokens_of(each, prompts, params, budget) for each in (alone, runner)]
    assert results[0] == results[1]


def tokens_of(
    runner: ModelRunner, prompts: list[list[int]], params: list[SamplingParams], budget: int
) -> list[list[int]]:
    engine = make_engine(
        runner,
        max_num_seqs=9,
        max_num_batched_tokens=budget,
        block_size=8,
        num_kv_blocks=50,
        max_model_len=64,
        async_scheduling=True,
    )
    return [output.outputs[0].token_ids for output in run_requests(engine, prompts, params)]


@settings(max_examples=15)
@given(data=st.data())
def test_unknown_tokens_are_those_that_the_first_rank_sampled_last(
    runner: ParallelDeviceRunner, alone: DeviceRunner, data: st.DataObject
) -> None:
    num_seqs = data.draw(st.integers(1, 5), "sequences")
    rows = np.concatenate([data.draw(ROWS) for _ in range(num_seqs)])
    edited = data.draw(st.sets(st.integers(0, num_seqs - 1)), "sequences that the host samples")
    edits = {i: LogitsEdits(banned=np.arange(5)) for i in edited}
    prompts = {i: data.draw(st.lists(st.integers(0, 210), min_size=1, max_size=9)) for i in range(num_seqs)}
    present = data.draw(
        st.lists(st.sets(st.integers(0, num_seqs - 1), min_size=1), min_size=1, max_size=5),
        "sequences of each step",
    )
    expected = one_after_the_other(alone, Sequences(rows, edits=edits), prompts, present)
    assert overlapped(runner, Sequences(rows, edits=edits), prompts, present) == expected


ROWS = st.builds(
    sampling_row,
    temperature=st.sampled_from([0.0, 0.9]),
    top_k=st.sampled_from([0, 8]),
    seed=st.integers(0, 9),
)


def test_its_logits_are_the_oracles(folder: Path, runner: ParallelDeviceRunner) -> None:
    tokens = np.random.default_rng(1).integers(0, 211, 50).tolist()
    logits = teacher_forced_logits(runner, tokens, block_size=8)
    np.testing.assert_allclose(logits, ReferenceModel(folder).logits(tokens), atol=1e-4, rtol=0)


def test_to_the_engine_it_is_the_whole_model_with_the_kv_cache_of_one_device(
    folder: Path, runner: ParallelDeviceRunner, alone: DeviceRunner
) -> None:
    config = json.loads((folder / "config.json").read_text())
    info = runner.model_info
    assert (info.num_heads, info.num_kv_heads) == (config["num_attention_heads"], config["num_key_value_heads"])
    assert runner.kv_bytes_per_block(16) == alone.kv_bytes_per_block(16) // 2
    assert runner.honours == alone.honours


def test_a_step_that_fails_on_all_ranks_is_an_error_and_the_next_one_works(runner: ParallelDeviceRunner) -> None:
    steps = started(runner)
    for _ in range(2):
        with pytest.raises(BackendError, match="step of 3 tokens") as raised:
            runner.execute(steps.step({0: [1, 10**6, 2]}))
        assert not isinstance(raised.value, BackendLostError)
        assert len(runner.execute(Sequences(sampling_row()).step({0: [1, 2, 3]})).token_ids[0]) == 1


def test_an_edit_that_fails_costs_its_step_only(runner: ParallelDeviceRunner) -> None:
    a_failing_edit_costs_its_step_only(runner)


def test_without_a_kv_cache_it_says_so_and_no_rank_goes_ahead(folder: Path) -> None:
    runner = load_parallel_device(folder)
    with pytest.raises(BackendError, match="allocate_kv_cache first"):
        runner.submit(Sequences(sampling_row()).step({0: [1]}))
    assert len(runner.execute(started(runner).step({0: [1]})).token_ids) == 1
    runner.close()


def test_the_kv_cache_gets_what_the_device_with_least_memory_has_left(folder: Path) -> None:
    runner = load_parallel_device(folder, load=load_uneven)
    assert runner.kv_memory_bytes() == min(LEFT_BYTES)
    with pytest.raises(BackendError, match="allocate_kv_cache first"):
        runner.execute(Sequences(sampling_row()).step({0: [1]}))
    engine = make_engine(runner, max_num_seqs=9, max_num_batched_tokens=64, max_model_len=128)
    assert engine.stats().num_kv_blocks == min(LEFT_BYTES) // runner.kv_bytes_per_block(32)
    engine.close()


def test_where_nobody_knows_the_devices_the_engine_decides(runner: ParallelDeviceRunner) -> None:
    assert runner.kv_memory_bytes() is None


def started(runner: ParallelDeviceRunner) -> Sequences:
    """One greedy sequence, for which the runner has room."""
    steps = Sequences(sampling_row())
    runner.allocate_kv_cache(steps.total_blocks, steps.block_size)
    return steps
