"""On torch every family computes what transformers computes, and what its own export computes."""

from collections.abc import Iterator

import numpy as np
import pytest
from torch_driver import load_runner

from backends.ort.plugin import nanovllm_model_runners as ort_model_runners
from export import export_model
from nanovllm import SamplingParams
from nanovllm.config import EngineConfig
from nanovllm.plugins import LogitsModelRunner, ModelSource
from nanovllm.testing import assert_same_tokens, make_engine, run_requests, teacher_forced_logits
from tests.architectures.family_configs import CASES
from tests.architectures.transformers_model import TransformersModel
from tests.recording_runner import Continuation, RecordingRunner

ATOL = 1e-4
TOKENS = np.random.default_rng(5).integers(0, 97, 64).tolist()
BLOCK_SIZE = 8

ROUNDS = (
    ([TOKENS[:40], TOKENS[1:18], TOKENS[30:40], TOKENS[3:14], TOKENS[5:8]], False),
    ([TOKENS[:32] + TOKENS[45:50], TOKENS[:39] + TOKENS[2:4]], True),
)
"""Prompts that are run together, and whether they begin with blocks of an earlier round."""

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TransformersModel:
    return TransformersModel(request.param.config, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def runner(model: TransformersModel) -> Iterator[RecordingRunner]:
    runner = load_runner(model.folder)
    yield RecordingRunner(runner)
    runner.close()


def test_it_gives_the_logits_of_transformers(model: TransformersModel, runner: RecordingRunner) -> None:
    expected = model.logits(TOKENS)
    assert np.ptp(expected) > 1, "such flat logits would agree with anything"
    logits = teacher_forced_logits(runner.runner, TOKENS, block_size=BLOCK_SIZE)
    np.testing.assert_allclose(logits, expected, atol=ATOL, rtol=0)


def test_ragged_chunked_and_on_a_cached_prefix_it_gives_the_tokens_of_transformers(
    model: TransformersModel, runner: RecordingRunner
) -> None:
    for prompt, tokens, logits in run_rounds(runner):
        expected = model.logits([*prompt, *tokens])
        assert_same_tokens(expected, prompt, tokens, logits=logits, atol=ATOL, near_tie=2 * ATOL)


def test_it_gives_the_tokens_of_the_export(model: TransformersModel, runner: RecordingRunner) -> None:
    folder = export_model(model.folder, model.folder / "onnx", block_size=BLOCK_SIZE, progress=False).folder
    (plugin,) = ort_model_runners()
    exported = plugin.factory(ModelSource(str(folder), folder), EngineConfig(model=str(folder), num_threads=1))
    assert isinstance(exported, LogitsModelRunner)
    ours, theirs = run_rounds(runner), run_rounds(RecordingRunner(exported))
    exported.close()
    for (prompt, tokens, logits), (_, other_tokens, other_logits) in zip(ours, theirs, strict=True):
        if tokens == other_tokens:  # else the rows behind a near-tie belong to different texts
            assert_same_tokens(other_logits, prompt, tokens, logits=logits, atol=ATOL, near_tie=0, min_share=1)
        else:
            assert_same_tokens(model.logits([*prompt, *other_tokens]), prompt, tokens, near_tie=2 * ATOL)


def run_rounds(runner: RecordingRunner) -> list[Continuation]:
    """Prompt, greedy tokens and the logits that chose them, of every request, from one fresh engine."""
    engine = make_engine(runner, max_num_batched_tokens=24, max_num_seqs=5, num_kv_blocks=60, block_size=BLOCK_SIZE)
    results: list[Continuation] = []
    for prompts, has_cached in ROUNDS:
        runner.logits.clear()
        outputs = run_requests(engine, prompts, GREEDY)
        assert [output.num_cached_tokens > 0 for output in outputs] == [has_cached] * len(prompts)
        results += runner.continuations(prompts, outputs)
    return results
