"""TorchRunner gives the oracle's logits, however the tokens are cut, mixed and scattered over blocks."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_driver import load_runner

from nanovllm import SamplingParams
from nanovllm.batch import SAMPLING_ROW, Batch, SamplingBatch
from nanovllm.errors import BackendError, KVCacheError
from nanovllm.plugins import LogitsModelRunner, ModelRunner
from nanovllm.testing import (
    ModelRunnerConformance,
    ReferenceModel,
    make_engine,
    run_requests,
    teacher_forced_logits,
    tiny_config,
    write_checkpoint,
)
from tests.recording_runner import RecordingRunner

ATOL = 1e-4
WINDOWS = {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1}
CONFIGS: dict[str, dict[str, Any]] = {
    "grouped heads, a window in one layer": {**WINDOWS},
    "one KV head, untied": {"num_attention_heads": 4, "num_key_value_heads": 1, "tie_word_embeddings": False},
    "a KV head each": {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 32},
}


@pytest.fixture(scope="module", params=CONFIGS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), tiny_config(**CONFIGS[request.param]))


@pytest.fixture(scope="module")
def runner(folder: Path) -> Iterator[LogitsModelRunner]:
    runner = load_runner(folder)
    yield runner
    runner.close()


@settings(max_examples=15)
@given(data=st.data())
def test_any_prompts_in_any_chunks_and_blocks_get_the_oracles_logits(
    folder: Path, runner: LogitsModelRunner, data: st.DataObject
) -> None:
    reference = ReferenceModel(folder)
    lens = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=6), "prompt lengths")
    random = np.random.default_rng(data.draw(st.integers(0, 99), "seed"))
    prompts = [random.integers(0, 211, n).tolist() for n in lens]
    recorder = RecordingRunner(runner)
    engine = make_engine(
        recorder,
        max_num_seqs=data.draw(st.integers(1, 6), "sequences"),
        max_num_batched_tokens=data.draw(st.sampled_from([6, 17, 40, 200]), "tokens of a step"),
        block_size=data.draw(st.sampled_from([1, 4, 16, 32]), "block size"),
        num_kv_blocks=600,
        max_model_len=80,
    )
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, prompt_logprobs=data.draw(PROMPT_LOGPROBS))
    outputs = run_requests(engine, prompts, params)
    seq_ids = sorted({seq_id for seq_id, _ in recorder.logits})
    for seq_id, prompt, output in zip(seq_ids, prompts, outputs, strict=True):
        expected = reference.logits([*prompt, *output.outputs[0].token_ids])
        for (owner, position), logits in recorder.logits.items():
            if owner == seq_id:
                np.testing.assert_allclose(logits, expected[position], atol=ATOL, rtol=0)


PROMPT_LOGPROBS = st.sampled_from([None, 0])


def test_a_step_that_wants_no_logits_still_fills_the_cache(folder: Path, runner: LogitsModelRunner) -> None:
    tokens = list(range(20))
    runner.allocate_kv_cache(4, 8)
    first = replace(batch_of(tokens[:15]), logits_indices=np.zeros(0, np.int32), logits_start=np.zeros(2, np.int32))
    assert runner.forward(first).shape == (0, runner.model_info.vocab_size)
    (logits,) = runner.forward(batch_of(tokens[15:], num_cached=15))
    np.testing.assert_allclose(logits, ReferenceModel(folder).logits(tokens)[-1], atol=ATOL, rtol=0)


def test_what_stood_in_the_cache_before_does_not_matter(folder: Path, runner: LogitsModelRunner) -> None:
    runner.allocate_kv_cache(4, 8)
    runner.forward(batch_of([200] * 32))
    (logits,) = runner.forward(batch_of([1, 2, 3]))
    np.testing.assert_allclose(logits, ReferenceModel(folder).logits([1, 2, 3])[-1], atol=ATOL, rtol=0)


def test_a_step_may_be_run_twice_and_leaves_its_batch_as_it_was(runner: LogitsModelRunner) -> None:
    runner.allocate_kv_cache(4, 8)
    batch = batch_of([3, 1, 4, 1, 5])
    arrays: list[np.ndarray[Any, Any]] = [batch.token_ids, batch.positions, batch.slot_mapping, batch.block_tables]
    before = [array.copy() for array in arrays]
    for array in arrays:
        array.flags.writeable = False
    first = runner.forward(batch).copy()
    np.testing.assert_array_equal(runner.forward(batch), first)
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_a_failing_step_is_a_backend_error_and_the_next_one_works(runner: LogitsModelRunner) -> None:
    runner.allocate_kv_cache(4, 8)
    with pytest.raises(BackendError, match="step of 3 tokens"):
        runner.forward(batch_of([1, 10**6, 2]))
    assert np.isfinite(runner.forward(batch_of([1, 2, 3]))).all()


def test_a_pool_that_no_machine_holds_is_refused(runner: LogitsModelRunner) -> None:
    with pytest.raises(KVCacheError, match="Lower num_kv_blocks"):
        runner.allocate_kv_cache(10**9, 1024)
    with pytest.raises(BackendError, match="allocate_kv_cache first"):
        runner.forward(batch_of([1]))


@pytest.mark.parametrize(("dtype", "item_bytes"), [("float32", 4), ("bfloat16", 2)])
def test_kv_bytes_are_those_of_all_layers_in_the_models_dtype(folder: Path, dtype: str, item_bytes: int) -> None:
    runner = load_runner(folder, dtype=dtype)
    info = runner.model_info
    assert info.dtype == info.kv_cache.dtype == dtype
    assert runner.kv_bytes_per_block(16) == 16 * 2 * info.num_layers * info.num_kv_heads * info.head_dim * item_bytes
    runner.close()


def test_a_closed_runner_says_so(folder: Path) -> None:
    runner = load_runner(folder)
    runner.allocate_kv_cache(4, 8)
    runner.close()
    with pytest.raises(BackendError, match="closed"):
        runner.forward(batch_of([1]))
    with pytest.raises(BackendError, match="closed"):
        runner.allocate_kv_cache(4, 8)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision_it_stays_near_the_oracle(folder: Path, dtype: str) -> None:
    tokens = np.random.default_rng(1).integers(0, 211, 50).tolist()
    runner = load_runner(folder, dtype=dtype)
    logits, expected = teacher_forced_logits(runner, tokens, block_size=8), ReferenceModel(folder).logits(tokens)
    runner.close()
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert error < {"bfloat16": 0.06, "float16": 0.01}[dtype]
    assert error > 1e-6, "no rounding at all: it was not computed in this dtype"


def test_each_runner_computes_with_its_own_number_of_threads(folder: Path, runner: LogitsModelRunner) -> None:
    runner.allocate_kv_cache(4, 8)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    runner.forward(batch_of([1, 2]))
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


def batch_of(tokens: list[int], num_cached: int = 0) -> Batch:
    """The next tokens of one sequence that lies in the first blocks, of 8 tokens each; the last row is wanted."""
    positions = num_cached + np.arange(len(tokens))
    return Batch(
        seq_ids=[0],
        released_seq_ids=[],
        token_ids=np.array(tokens, np.int64),
        positions=positions,
        query_start=np.array([0, len(tokens)], np.int32),
        context_lens=np.array([num_cached], np.int32),
        block_tables=np.arange(4, dtype=np.int32)[None],
        slot_mapping=positions.astype(np.int32),
        logits_indices=np.array([len(tokens) - 1], np.int32),
        logits_start=np.array([0, 1], np.int32),
        adapter_ids=np.zeros(1, np.int32),
        sampling=SamplingBatch(np.zeros(1, SAMPLING_ROW), np.array([num_cached + len(tokens)])),
    )


class TestConformance(ModelRunnerConformance):
    """The laws that every runner keeps."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        self.folder = write_checkpoint(tmp_path_factory.mktemp("conformance"))

    def make_runner(self) -> ModelRunner:
        return load_runner(self.folder)
