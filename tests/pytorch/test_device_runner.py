"""A device runner gives the tokens of the CPU's runner: packed steps, replayed graphs, sampling in place, overlap.

Its device is the CPU here, with torch's own attention behind the border; the kernels of CUDA are tested in
tests/pytorch_triton and tests/cuda.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_driver import (
    ANY_PARAMS,
    LIMITS,
    RerunGraph,
    Sequences,
    a_failing_edit_costs_its_step_only,
    load_device,
    one_after_the_other,
    overlapped,
    sampling_row,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_driver import load_runner

from backends.pytorch.device_runner import DeviceRunner
from nanovllm import SamplingParams
from nanovllm.batch import LogitsEdits
from nanovllm.errors import BackendError
from nanovllm.plugins import LogitsModelRunner, ModelRunner
from nanovllm.testing import (
    ModelRunnerConformance,
    make_engine,
    run_requests,
    teacher_forced_logits,
    tiny_config,
    write_checkpoint,
)
from tests.architectures.family_configs import CASES

GPT2 = next(case.config for case in CASES if case.name == "gpt2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    windows = {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1}
    return write_checkpoint(tmp_path_factory.mktemp("model"), tiny_config(**windows))


@pytest.fixture(scope="module")
def on_cpu(folder: Path) -> Iterator[LogitsModelRunner]:
    runner = load_runner(folder)
    yield runner
    runner.close()


@pytest.fixture
def runner(folder: Path) -> Iterator[DeviceRunner]:
    runner = load_device(folder, capture=RerunGraph)
    yield runner
    runner.close()


def test_it_gives_the_logits_of_the_cpu(folder: Path, on_cpu: LogitsModelRunner, runner: DeviceRunner) -> None:
    tokens = np.random.default_rng(1).integers(0, 211, 50).tolist()
    expected, logits = (teacher_forced_logits(each, tokens, block_size=8) for each in (on_cpu, runner))
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


@settings(max_examples=40)
@given(data=st.data())
def test_any_requests_get_the_tokens_of_the_cpu(folder: Path, on_cpu: LogitsModelRunner, data: st.DataObject) -> None:
    """Chunks, mixed steps, host-sampled rows beside others, drafts."""
    capture = data.draw(st.sampled_from([None, RerunGraph]), "graphs")
    lens = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=5), "prompt lengths")
    random = np.random.default_rng(data.draw(st.integers(0, 99), "seed"))
    prompts = [random.integers(0, 211, n).tolist() for n in lens]
    params = [data.draw(ANY_PARAMS) for _ in prompts]
    budget = data.draw(st.sampled_from([9, 17, 64]), "tokens of a step")
    results = []
    for runner in (on_cpu, load_device(folder, capture=capture)):
        engine = make_engine(
            runner, max_num_seqs=9, max_num_batched_tokens=budget, block_size=8, num_kv_blocks=50, max_model_len=64
        )
        results.append([output.outputs[0].token_ids for output in run_requests(engine, prompts, params)])
    assert results[0] == results[1]


def tokens_of(runner: LogitsModelRunner) -> list[list[int]]:
    """Greedy and drawn continuations of a few prompts."""
    engine = make_engine(runner, max_num_seqs=9, max_num_batched_tokens=64, block_size=8, max_model_len=128)
    drawn = SamplingParams(temperature=0.8, top_p=0.9, seed=1, max_tokens=5, ignore_eos=True)
    greedy = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    outputs = run_requests(engine, [list(range(3, 30)), [7], list(range(50, 61))], [greedy, drawn, greedy])
    engine.close()
    return [output.outputs[0].token_ids for output in outputs]


class TestGraphs:
    def test_a_decode_step_runs_as_the_graph_of_the_next_larger_size(self, folder: Path) -> None:
        captured: list[int] = []

        def capture(compute: Any) -> RerunGraph:
            graph = RerunGraph(compute)
            captured.append(len(next(iter(graph.replay().values()))))
            return graph

        runner = load_device(folder, capture=capture)
        runner.allocate_kv_cache(72, 8)
        assert captured == [9, 8, 4, 2, 1]
        sequences = Sequences(np.concatenate([sampling_row()] * 9))
        runner.execute(sequences.step({i: [i + 1, 5] for i in range(9)}))
        assert len(captured) == 5, "a step of prompts was captured"
        for count in (3, 9, 1, 5):
            runner.execute(sequences.step({i: [3] for i in range(count)}))
        assert len(captured) == 5, "a graph was captured twice"
        runner.allocate_kv_cache(72, 8)
        assert len(captured) == 10, "graphs of pools that are gone were kept"

    def test_rows_that_fill_up_a_graph_write_nothing(self, folder: Path) -> None:
        """Three sequences in a graph of four: a stranger in block 0, where an idle row would write, is left alone."""
        steps = Sequences(np.concatenate([sampling_row()] * 4))
        runner = load_device(folder, capture=RerunGraph)
        runner.allocate_kv_cache(steps.total_blocks, steps.block_size)
        runner.execute(steps.step({i: [11, 12 + i, 13] for i in range(4)}))
        for _ in range(3):
            runner.execute(steps.step({i: [20] for i in (1, 2, 3)}))
        (logits,) = runner.forward(steps.step({0: [14]}))
        alone = load_device(folder)
        (expected,) = teacher_forced_logits(alone, [11, 12, 13, 14], block_size=8)[-1:]
        np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=0)

    def test_a_mixture_of_experts_runs_without(self, tmp_path: Path) -> None:
        changes = {
            "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
            "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
        }  # fmt: skip
        folder = write_checkpoint(tmp_path / "model", tiny_config(**changes))

        def refuse(compute: Any) -> RerunGraph:
            raise AssertionError("captured")

        assert tokens_of(load_device(folder, capture=refuse)) == tokens_of(load_runner(folder))


class TestOverlap:
    """Steps that are submitted before the tokens of the one before are known."""

    @settings(max_examples=40)
    @given(data=st.data())
    def test_unknown_tokens_are_those_that_were_sampled_last(self, folder: Path, data: st.DataObject) -> None:
        num_seqs = data.draw(st.integers(1, 5), "sequences")
        rows = np.concatenate([data.draw(ROWS) for _ in range(num_seqs)])
        edited = data.draw(st.sets(st.integers(0, num_seqs - 1)), "sequences that the host samples")
        edits = {i: LogitsEdits(banned=np.arange(5)) for i in edited}
        prompts = {i: data.draw(st.lists(st.integers(0, 210), min_size=1, max_size=9)) for i in range(num_seqs)}
        present = data.draw(
            st.lists(st.sets(st.integers(0, num_seqs - 1), min_size=1), min_size=1, max_size=5),
            "sequences of each step",
        )
        runner = load_device(folder, capture=data.draw(st.sampled_from([None, RerunGraph]), "graphs"))
        sequences = [Sequences(rows, edits=edits) for _ in range(2)]
        expected = one_after_the_other(runner, sequences[0], prompts, present)
        assert overlapped(runner, sequences[1], prompts, present) == expected

    def test_a_released_sequence_leaves_its_place_to_another(self, runner: DeviceRunner) -> None:
        rows = np.concatenate([sampling_row()] * 2)
        first, second = Sequences(rows), Sequences(rows)
        runner.allocate_kv_cache(first.total_blocks, first.block_size)
        ((token,),) = runner.execute(first.step({0: [1, 2, 3]})).token_ids
        expected = runner.execute(first.step({0: [token]})).token_ids
        runner.execute(second.step({0: [1, 2, 3], 1: [9]}, released=[0]))
        pending = runner.submit(replace(second.step({0: [-1]}), released_seq_ids=[1]))
        assert pending.result().token_ids == expected


ROWS = st.builds(
    sampling_row,
    temperature=st.sampled_from([0.0, 0.9]),
    top_k=st.sampled_from([0, 8]),
    seed=st.integers(0, 9),
)


class TestErrors:
    def test_a_failing_step_is_a_backend_error_and_the_next_one_works(self, runner: DeviceRunner) -> None:
        steps = Sequences(sampling_row())
        runner.allocate_kv_cache(steps.total_blocks, steps.block_size)
        with pytest.raises(BackendError, match="step of 3 tokens"):
            runner.execute(steps.step({0: [1, 10**6, 2]}))
        assert np.isfinite(runner.forward(Sequences(sampling_row()).step({0: [1, 2, 3]}))).all()

    def test_a_failing_edit_is_told_by_the_step_that_has_it(self, runner: DeviceRunner) -> None:
        a_failing_edit_costs_its_step_only(runner)

    def test_without_a_kv_cache_it_says_so(self, runner: DeviceRunner) -> None:
        with pytest.raises(BackendError, match="allocate_kv_cache first"):
            runner.execute(Sequences(sampling_row()).step({0: [1]}))

    def test_a_closed_runner_says_so(self, folder: Path) -> None:
        runner = load_device(folder)
        runner.allocate_kv_cache(4, 8)
        runner.close()
        with pytest.raises(BackendError, match="closed"):
            runner.execute(Sequences(sampling_row()).step({0: [1]}))
        with pytest.raises(BackendError, match="closed"):
            runner.allocate_kv_cache(4, 8)


class TestKVMemory:
    """How much is left for the KV cache, with a device that the test invents."""

    class Memory:
        """10,000 bytes, of which the model has 1,000; each run takes 700 more."""

        utilization = 0.8
        others_bytes = 0

        def __init__(self) -> None:
            self.num_runs = 0

        def total_and_free(self) -> tuple[int, int]:
            return 10_000, 9_000

        def peak_bytes(self, run: Any) -> int:
            self.num_runs += 1
            run()
            return 700

    @pytest.mark.parametrize(("capture", "num_runs"), [(None, 1), (RerunGraph, 2)])
    def test_what_steps_and_graphs_need_is_left_free(self, folder: Path, capture: Any, num_runs: int) -> None:
        memory = self.Memory()
        runner = load_device(folder, capture=capture, memory=memory)
        assert runner.kv_memory_bytes() == 8_000 - 1_000 - 700 * num_runs
        assert memory.num_runs == num_runs
        with pytest.raises(BackendError, match="allocate_kv_cache first"):
            runner.execute(Sequences(sampling_row()).step({0: [1]}))

    def test_the_engine_takes_no_more_blocks_than_that(self, folder: Path) -> None:
        memory = self.Memory()
        memory.total_and_free = lambda: (10_000_000, 9_999_000)  # type: ignore[method-assign]
        runner = load_device(folder, memory=memory)
        bytes_left = 8_000_000 - 1_000 - 700
        engine = make_engine(runner, max_num_seqs=9, max_num_batched_tokens=64, max_model_len=128)
        expected = min(bytes_left // runner.kv_bytes_per_block(32), 9 * 4)
        assert engine.stats().num_kv_blocks == expected
        engine.close()

    def test_a_model_of_short_sequences_is_warmed_up_with_no_longer_ones(self, tmp_path: Path) -> None:
        """Positions have a table here; on a CUDA device, to read past it would end the process's use of the device."""
        folder = write_checkpoint(tmp_path / "model", {**GPT2, "n_positions": 20})
        runner = load_device(folder, memory=self.Memory(), limits=replace(LIMITS, max_model_len=20))
        runner.allocate_kv_cache(4, 8)
        assert np.isfinite(teacher_forced_logits(runner, list(range(20)), block_size=8)).all()

    def test_where_nobody_knows_the_device_the_engine_decides(self, runner: DeviceRunner) -> None:
        assert runner.kv_memory_bytes() is None


def test_an_unused_runner_holds_no_buffers_for_steps_beyond_its_limits(runner: DeviceRunner) -> None:
    """A step that is larger than the limits runs as well, on memory of its own."""
    tokens = list(range(100))
    assert len(tokens) > LIMITS.max_num_batched_tokens
    assert np.isfinite(teacher_forced_logits(runner, tokens, block_size=8)).all()


class TestConformance(ModelRunnerConformance):
    """The laws that every runner keeps."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        self.folder = write_checkpoint(tmp_path_factory.mktemp("conformance"))

    def make_runner(self) -> ModelRunner:
        return load_device(self.folder, capture=RerunGraph, limits=replace(LIMITS, max_num_seqs=16))


def test_the_batch_of_a_step_is_left_as_it_was(runner: DeviceRunner) -> None:
    steps = Sequences(np.concatenate([sampling_row(temperature=1)] * 2))
    runner.allocate_kv_cache(steps.total_blocks, steps.block_size)
    batch = steps.step({0: [5, 6], 1: [8, 7]})
    before = {name: getattr(batch, name).copy() for name in ARRAYS}
    for name in ARRAYS:
        getattr(batch, name).flags.writeable = False
    assert runner.execute(batch).token_ids == runner.execute(batch).token_ids
    for name, array in before.items():
        np.testing.assert_array_equal(getattr(batch, name), array)


ARRAYS = ("token_ids", "positions", "query_start", "context_lens", "block_tables", "slot_mapping", "logits_indices")
