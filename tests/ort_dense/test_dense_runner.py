"""Dense graphs of both kinds through any mixture of steps, row by row against the numpy reference."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from dense_driver import DenseSequence, Work, load_runner, pack, step
from dense_graphs import STYLES, Style, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.ort.dense_folder import find_dense_folder
from backends.ort.dense_graph import DenseGraph
from backends.ort.dense_runner import DenseRunner
from backends.ort.options import OrtOptions
from backends.ort.session import open_graph
from nanovllm import SamplingParams
from nanovllm.errors import BackendError
from nanovllm.plugins import LogitsModelRunner, ModelRunner
from nanovllm.plugins.interfaces import KVMode
from nanovllm.testing import (
    ModelRunnerConformance,
    ReferenceModel,
    assert_same_tokens,
    make_engine,
    run_requests,
    teacher_forced_logits,
    write_checkpoint,
)
from tests.packed_steps import Oracle

NUM_TOKENS = 2048  # of the cache


@dataclass
class Model:
    """A folder in another tool's layout, and the oracle for its checkpoint."""

    folder: Path
    style: Style
    oracle: Oracle

    def sequences(self, *lens: int, seed: int = 0) -> list[DenseSequence]:
        random = np.random.default_rng(seed)
        return [DenseSequence(100 + i, random.integers(0, 211, n).tolist()) for i, n in enumerate(lens)]

    def check(
        self, runner: LogitsModelRunner, work: Sequence[Work[DenseSequence]], released: Sequence[int] = ()
    ) -> None:
        """Runs a step and compares every wanted row."""
        self.oracle.check(step(runner, work, released), atol=0.1 if self.style.half else 1e-4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("dense") / "checkpoint")


@pytest.fixture(scope="module", params=STYLES)
def model(request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    style = STYLES[request.param]
    folder = write_folder(checkpoint, tmp_path_factory.mktemp("folder"), style)
    return Model(folder, style, Oracle(ReferenceModel(checkpoint)))


@pytest.fixture(scope="module")
def shared_runner(model: Model) -> Iterator[LogitsModelRunner]:
    runner = load_runner(model.folder)
    yield runner
    runner.close()


@pytest.fixture
def runner(shared_runner: LogitsModelRunner) -> LogitsModelRunner:
    """With an empty cache, whose smallest pool holds 8 tokens, so that sequences soon outgrow it."""
    shared_runner.allocate_kv_cache(NUM_TOKENS // 8, 8)
    return shared_runner


def test_a_whole_prompt_at_once(model: Model, runner: LogitsModelRunner) -> None:
    (sequence,) = model.sequences(70)
    model.check(runner, [Work(sequence, 70, "all")])


def test_a_prompt_in_chunks_and_then_decodes(model: Model, runner: LogitsModelRunner) -> None:
    (sequence,) = model.sequences(60)
    for num_tokens in (17, 1, 30, 7, 1, 1, 1, 2):
        model.check(runner, [Work(sequence, num_tokens)])


def test_a_ragged_mixed_batch(model: Model, runner: LogitsModelRunner) -> None:
    a, b, c, d, e = model.sequences(12, 50, 33, 80, 3)
    model.check(runner, [Work(a, 9), Work(b, 40, "none"), Work(c, 32), Work(e, 1)])
    model.check(runner, [Work(d, 64, "none"), Work(a), Work(b, 9, "all"), Work(e), Work(c)])
    model.check(runner, [Work(a), Work(b), Work(d, 15), Work(e)])
    model.check(runner, [Work(d)])


def test_decodes_of_very_different_contexts(model: Model, runner: LogitsModelRunner) -> None:
    sequences = model.sequences(3, 200, 9, 17, 60)
    for sequence in sequences:
        model.check(runner, [Work(sequence, len(sequence.tokens) - 2, "none")])
    model.check(runner, [Work(sequence) for sequence in sequences])
    model.check(runner, [Work(sequence) for sequence in reversed(sequences)])


def test_sequences_come_and_go_while_others_are_in_mid_prompt(model: Model, runner: LogitsModelRunner) -> None:
    a, b, c, d, e = model.sequences(40, 60, 40, 90, 20)
    model.check(runner, [Work(a, 20), Work(b, 10, "none"), Work(c, 5)])
    model.check(runner, [Work(a), Work(c), Work(b, 10, "none")])
    model.check(runner, [Work(c), Work(b, 10, "none"), Work(d, 30, "none")], released=[a.seq_id])
    model.check(runner, [Work(c), Work(e), Work(b, 29), Work(d, 30, "none")])
    model.check(runner, [Work(e), Work(b), Work(d, 29)], released=[c.seq_id])
    model.check(runner, [Work(d)], released=[b.seq_id, e.seq_id])


def test_a_preempted_sequence_begins_again(model: Model, runner: LogitsModelRunner) -> None:
    a, b = model.sequences(40, 30)
    model.check(runner, [Work(a, 20), Work(b, 20)])
    model.check(runner, [Work(a)], released=[b.seq_id])
    b.num_computed = 0
    model.check(runner, [Work(a), Work(b, 25)])
    a.num_computed = 0
    model.check(runner, [Work(b), Work(a, 30)])  # also where nobody said that it was released


def test_a_step_that_wants_no_logits(model: Model, runner: LogitsModelRunner) -> None:
    a, b = model.sequences(20, 30)
    assert step(runner, [Work(a, 10, "none"), Work(b, 25, "none")]) == []
    model.check(runner, [Work(a, 10, "all"), Work(b, 5, "all")])


@settings(max_examples=10)
@given(data=st.data())
def test_any_split_of_any_sequences_gives_the_same_logits(
    model: Model, shared_runner: LogitsModelRunner, data: st.DataObject
) -> None:
    block_size = data.draw(st.sampled_from([4, 32]), "block size")
    num_blocks = data.draw(st.sampled_from([4, 100]), "blocks")
    shared_runner.allocate_kv_cache(num_blocks, block_size)
    lens = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=5), "lengths")
    sequences = model.sequences(*lens, seed=data.draw(st.integers(0, 9), "seed"))
    finished: list[int] = []
    while unfinished := [s for s in sequences if s.num_computed < len(s.tokens)]:
        chosen = data.draw(st.permutations(unfinished), "order")[: data.draw(st.integers(1, 5), "sequences")]
        work = [
            Work(s, data.draw(st.integers(1, len(s.tokens) - s.num_computed)), data.draw(st.sampled_from(WANTED)))
            for s in chosen
        ]
        model.check(shared_runner, work, released=finished)
        finished = [s.seq_id for s in chosen if s.num_computed == len(s.tokens)]


WANTED = ("last", "all", "none")


def test_a_failing_step_is_a_backend_error_and_the_next_one_works(model: Model, runner: LogitsModelRunner) -> None:
    a, b = model.sequences(9, 20)
    model.check(runner, [Work(b, 10)])
    good, a.tokens = a.tokens, [10**6] * 9
    with pytest.raises(BackendError, match="ONNX Runtime failed in a run of 9 tokens"):
        runner.forward(pack([Work(b), Work(a, 9)]))
    a.tokens = good
    model.check(runner, [Work(b), Work(a, 9)])


def test_a_context_that_the_cache_does_not_have_is_a_backend_error(model: Model, runner: LogitsModelRunner) -> None:
    (sequence,) = model.sequences(9)
    sequence.num_computed = 5
    with pytest.raises(BackendError, match=r"said to have 5 tokens in the cache; it has 0"):
        runner.forward(pack([Work(sequence)]))


def test_a_chunk_whose_logits_would_be_huge_is_cut(model: Model) -> None:
    dense = find_dense_folder(model.folder)
    assert dense is not None
    facts = dense.read_facts()
    graph = DenseGraph(dense.graph, open_graph(dense.graph, num_threads=1, options=OrtOptions()), facts)
    cut = DenseRunner(graph, graph.model_info("cut", facts), max_logits_bytes=211 * 20 * 4)
    cut.allocate_kv_cache(NUM_TOKENS // 8, 8)
    a, b = model.sequences(70, 41)
    model.check(cut, [Work(a, 70, "all"), Work(b, 41)])
    cut.close()


def test_a_closed_runner_says_so(model: Model) -> None:
    runner = load_runner(model.folder)
    (sequence,) = model.sequences(3)
    with pytest.raises(BackendError, match="not allocated"):
        runner.forward(pack([Work(sequence)]))
    runner.allocate_kv_cache(4, 8)
    runner.close()
    runner.close()
    with pytest.raises(BackendError, match="closed"):
        runner.forward(pack([Work(sequence)]))


def test_teacher_forced_logits_are_those_of_the_reference(model: Model, runner: LogitsModelRunner) -> None:
    (sequence,) = model.sequences(256)  # as long as the model goes
    expected = model.oracle.reference.logits(sequence.tokens)
    tolerance = 0.1 if model.style.half else 1e-4
    np.testing.assert_allclose(teacher_forced_logits(runner, sequence.tokens), expected, atol=tolerance, rtol=0)


class DenseConformance(ModelRunnerConformance):
    style: Style
    kv: KVMode = "unshared"

    @pytest.fixture(autouse=True)
    def _folder(self, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        self.folder = write_folder(checkpoint, tmp_path_factory.mktemp("conformance"), self.style)

    def make_runner(self) -> ModelRunner:
        return load_runner(self.folder)

    def test_preempted_requests_give_what_undisturbed_ones_give(self) -> None:
        prompts, alone = self.one_at_a_time(self.greedy())
        if self.kv == "per_sequence":
            return  # every sequence has a block of its own: nothing is ever preempted
        engine = make_engine(
            self.make_runner(), kv=self.kv, max_model_len=128, block_size=8, num_kv_blocks=16, max_num_seqs=16
        )
        outputs = run_requests(engine, prompts, self.greedy())
        assert [output.outputs[0].token_ids for output in outputs] == alone
        assert engine.stats().num_preemptions > 0
        engine.close()


class TestSharedConformance(DenseConformance):
    style = STYLES["gqa"]


class TestConcatConformance(DenseConformance):
    style = STYLES["concat"]


class TestConcatWithoutPositionsConformance(DenseConformance):
    style = STYLES["concat without positions"]


class TestSharedConformanceWithOneBlockPerSequence(DenseConformance):
    style = STYLES["gqa"]
    kv = "per_sequence"


class TestConcatConformanceWithOneBlockPerSequence(DenseConformance):
    style = STYLES["concat"]
    kv = "per_sequence"


def test_greedy_tokens_are_those_of_the_reference(model: Model) -> None:
    engine = make_engine(load_runner(model.folder), kv="unshared", max_num_batched_tokens=32, max_num_seqs=8)
    prompts = [sequence.tokens for sequence in model.sequences(3, 40, 11)]
    outputs = run_requests(engine, prompts, SamplingParams(temperature=0, max_tokens=10, ignore_eos=True))
    engine.close()
    for prompt, output in zip(prompts, outputs, strict=True):
        near_tie = 0.1 if model.style.half else 1e-3
        assert_same_tokens(model.oracle.reference.logits, prompt, output.outputs[0].token_ids, near_tie=near_tie)
