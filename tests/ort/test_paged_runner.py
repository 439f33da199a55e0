"""PagedRunner gives the oracle's logits, however the tokens are cut, mixed and scattered over blocks."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paged_driver import PagedSequence, Work, load_runner, pack, step

from export import export_model
from nanovllm.errors import BackendError, KVCacheError
from nanovllm.plugins import LogitsModelRunner, ModelRunner
from nanovllm.testing import ModelRunnerConformance, ReferenceModel, tiny_config, write_checkpoint
from tests.packed_steps import Oracle

NUM_SLOTS = 1024

CONFIGS: dict[str, dict[str, Any]] = {
    "wide heads, tied": {},
    "one KV head, untied": {"num_attention_heads": 4, "num_key_value_heads": 1, "tie_word_embeddings": False},
    "a KV head each": {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 32, "rope_theta": 1e6},
}


@dataclass
class Model:
    """An export, the oracle of its checkpoint, and blocks in scattered order."""

    folder: Path
    oracle: Oracle

    def sequences(self, *lens: int, block_size: int, seed: int = 0) -> list[PagedSequence]:
        """Random sequences of these lengths, each with blocks for all of it."""
        random = np.random.default_rng(seed)
        free = random.permutation(NUM_SLOTS // block_size).tolist()
        return [
            PagedSequence(random.integers(0, 211, n).tolist(), [free.pop() for _ in range(-(-n // block_size))])
            for n in lens
        ]

    def check(self, runner: LogitsModelRunner, work: list[Work[PagedSequence]], block_size: int) -> None:
        """Runs a step and compares every wanted row."""
        self.oracle.check(step(runner, work, block_size), atol=1e-4)


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    root = tmp_path_factory.mktemp("model")
    seed = list(CONFIGS).index(request.param)
    checkpoint = write_checkpoint(root / "checkpoint", tiny_config(**CONFIGS[request.param]), seed=seed)
    return Model(export_model(checkpoint, root / "export", progress=False).folder, Oracle(ReferenceModel(checkpoint)))


@pytest.fixture(scope="module")
def shared_runner(model: Model) -> Iterator[LogitsModelRunner]:
    runner = load_runner(model.folder)
    yield runner
    runner.close()


@pytest.fixture(params=[8, 16, 32])
def block_size(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def runner(shared_runner: LogitsModelRunner, block_size: int) -> LogitsModelRunner:
    """With fresh pools of `block_size`: one model file serves every block size."""
    shared_runner.allocate_kv_cache(NUM_SLOTS // block_size, block_size)
    return shared_runner


def test_a_whole_prompt_at_once(model: Model, runner: LogitsModelRunner, block_size: int) -> None:
    (sequence,) = model.sequences(70, block_size=block_size)
    model.check(runner, [Work(sequence, 70, "all")], block_size)


def test_a_prompt_in_chunks_and_then_decodes(model: Model, runner: LogitsModelRunner, block_size: int) -> None:
    (sequence,) = model.sequences(60, block_size=block_size)
    for num_tokens in (17, 1, 30, 7, 1, 1, 1, 2):
        model.check(runner, [Work(sequence, num_tokens)], block_size)


def test_a_ragged_mixed_batch(model: Model, runner: LogitsModelRunner, block_size: int) -> None:
    a, b, c, d, e = model.sequences(12, 50, 33, 80, 3, block_size=block_size)
    model.check(runner, [Work(a, 9), Work(b, 40, "none"), Work(c, 32), Work(e, 1)], block_size)
    model.check(runner, [Work(d, 64, "none"), Work(a), Work(b, 9, "all"), Work(e), Work(c)], block_size)
    model.check(runner, [Work(a), Work(b), Work(d, 15), Work(e)], block_size)
    model.check(runner, [Work(d)], block_size)


def test_decodes_of_very_different_contexts(model: Model, runner: LogitsModelRunner, block_size: int) -> None:
    sequences = model.sequences(3, 200, 9, 17, 60, block_size=block_size)
    for sequence in sequences:
        model.check(runner, [Work(sequence, len(sequence.tokens) - 2, "none")], block_size)
    model.check(runner, [Work(sequence) for sequence in sequences], block_size)
    model.check(runner, [Work(sequence) for sequence in reversed(sequences)], block_size)


def test_a_cached_prefix_of_another_sequence(model: Model, runner: LogitsModelRunner, block_size: int) -> None:
    first, second = model.sequences(70, 70, block_size=block_size)
    num_shared = 64 // block_size
    model.check(runner, [Work(first, 70)], block_size)
    second.tokens[:64] = first.tokens[:64]
    second.blocks[:num_shared] = first.blocks[:num_shared]
    second.num_computed = 64
    model.check(runner, [Work(second, 6, "all")], block_size)


def test_a_wholly_cached_prompt_computes_its_last_token(
    model: Model, runner: LogitsModelRunner, block_size: int
) -> None:
    (sequence,) = model.sequences(64, block_size=block_size)
    model.check(runner, [Work(sequence, 64)], block_size)
    sequence.num_computed = 63
    model.check(runner, [Work(sequence)], block_size)


def test_a_step_that_wants_no_logits(model: Model, runner: LogitsModelRunner, block_size: int) -> None:
    a, b = model.sequences(20, 30, block_size=block_size)
    assert step(runner, [Work(a, 10, "none"), Work(b, 25, "none")], block_size) == []
    model.check(runner, [Work(a, 10, "all"), Work(b, 5, "all")], block_size)


def test_blocks_are_reused_after_another_sequence(model: Model, runner: LogitsModelRunner, block_size: int) -> None:
    (old,) = model.sequences(90, block_size=block_size)
    model.check(runner, [Work(old, 90)], block_size)
    (new,) = model.sequences(90, block_size=block_size, seed=9)
    new.blocks = list(reversed(old.blocks))
    for num_tokens in (50, 1, 20):
        model.check(runner, [Work(new, num_tokens, "all")], block_size)


@settings(max_examples=15)
@given(data=st.data())
def test_any_split_of_any_sequences_gives_the_same_logits(
    model: Model, shared_runner: LogitsModelRunner, data: st.DataObject
) -> None:
    block_size = data.draw(st.sampled_from([4, 8, 32]), "block size")
    lens = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=5), "lengths")
    shared_runner.allocate_kv_cache(NUM_SLOTS // block_size, block_size)
    sequences = model.sequences(*lens, block_size=block_size, seed=data.draw(st.integers(0, 9), "seed"))
    while unfinished := [s for s in sequences if s.num_computed < len(s.tokens)]:
        chosen = data.draw(st.permutations(unfinished), "order")[: data.draw(st.integers(1, 5), "sequences")]
        work = [
            Work(s, data.draw(st.integers(1, len(s.tokens) - s.num_computed)), data.draw(st.sampled_from(WANTED)))
            for s in chosen
        ]
        model.check(shared_runner, work, block_size)


WANTED = ("last", "all", "none")


def test_the_batch_is_left_as_it_was(model: Model, shared_runner: LogitsModelRunner) -> None:
    shared_runner.allocate_kv_cache(NUM_SLOTS // 8, 8)
    batch = pack([Work(s, len(s.tokens)) for s in model.sequences(5, 9, block_size=8)], 8)
    arrays: list[np.ndarray[Any, Any]] = [batch.token_ids, batch.positions, batch.query_start, batch.block_tables]
    before = [array.copy() for array in arrays]
    for array in arrays:
        array.flags.writeable = False
    shared_runner.forward(batch)
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_a_failing_step_is_a_backend_error_and_the_next_one_works(
    model: Model, shared_runner: LogitsModelRunner
) -> None:
    shared_runner.allocate_kv_cache(NUM_SLOTS // 8, 8)
    (sequence,) = model.sequences(9, block_size=8)
    good, sequence.tokens = sequence.tokens, [10**6] * 9
    with pytest.raises(BackendError, match="step of 9 tokens"):
        shared_runner.forward(pack([Work(sequence, 9)], 8))
    sequence.tokens = good
    model.check(shared_runner, [Work(sequence, 9)], 8)


def test_a_pool_that_no_machine_holds_is_refused(shared_runner: LogitsModelRunner) -> None:
    with pytest.raises(KVCacheError, match="Lower num_kv_blocks"):
        shared_runner.allocate_kv_cache(10**9, 1024)
    with pytest.raises(BackendError, match="allocate_kv_cache first"):
        shared_runner.forward(pack([Work(PagedSequence([1], [0]))], 8))


def test_kv_bytes_are_those_of_all_layers(model: Model, shared_runner: LogitsModelRunner) -> None:
    info = shared_runner.model_info
    per_token = 2 * info.num_layers * info.num_kv_heads * info.head_dim * 4
    assert shared_runner.kv_bytes_per_block(16) == 16 * per_token


def test_a_closed_runner_says_so(model: Model) -> None:
    runner = load_runner(model.folder)
    runner.allocate_kv_cache(4, 8)
    runner.close()
    with pytest.raises(BackendError, match="closed"):
        runner.forward(pack([Work(PagedSequence([1], [0]))], 8))
    with pytest.raises(BackendError, match="closed"):
        runner.allocate_kv_cache(4, 8)


class TestConformance(ModelRunnerConformance):
    """The laws that every runner keeps; for tokens near a tie, the random weights are far enough apart."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        root = tmp_path_factory.mktemp("conformance")
        self.folder = export_model(write_checkpoint(root / "model"), root / "export", progress=False).folder

    def make_runner(self) -> ModelRunner:
        return load_runner(self.folder)
