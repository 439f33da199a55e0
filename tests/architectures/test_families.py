"""Every family computes what transformers computes: in numpy, and exported through the engine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from family_configs import CASES, Case
from transformers_model import TransformersModel

from backends.ort.plugin import nanovllm_model_runners
from export import export_model
from nanovllm import SamplingParams
from nanovllm.config import EngineConfig
from nanovllm.plugins import LogitsModelRunner, ModelSource
from nanovllm.testing import assert_same_tokens, make_engine, reference_logits, run_requests, teacher_forced_logits
from tests.recording_runner import RecordingRunner

TOLERANCE = 2e-5
"""Share of the largest logit. GELU instead of its tanh approximation, the smallest of mistakes, makes 1e-4."""

TOKENS = np.random.default_rng(5).integers(0, 97, 40).tolist()
BLOCK_SIZE = 8


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TransformersModel:
    return TransformersModel(request.param.config, tmp_path_factory.mktemp("model"))


def assert_close(logits: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> None:
    assert np.ptp(expected) > 1, "such flat logits would agree with anything"
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE * max(1.0, float(np.abs(expected).max())), rtol=0)


def test_numpy_gives_the_logits_of_transformers(model: TransformersModel) -> None:
    assert_close(reference_logits(model.folder, TOKENS), model.logits(TOKENS))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_with_another_seed_and_the_other_kind_of_head(case: Case, tmp_path: Path) -> None:
    tied = TransformersModel(case.config, tmp_path / "as-is", seed=1).model.config.tie_word_embeddings
    other = TransformersModel({**case.config, "tie_word_embeddings": not tied}, tmp_path / "other", seed=1)
    assert_close(reference_logits(other.folder, TOKENS), other.logits(TOKENS))


@pytest.fixture(scope="module")
def runner(model: TransformersModel) -> Iterator[RecordingRunner]:
    folder = export_model(model.folder, model.folder / "onnx", block_size=BLOCK_SIZE, progress=False).folder
    (plugin,) = nanovllm_model_runners()
    runner = plugin.factory(ModelSource(str(folder), folder), EngineConfig(model=str(folder), num_threads=1))
    assert isinstance(runner, LogitsModelRunner)
    yield RecordingRunner(runner)
    runner.close()


def test_the_export_gives_the_logits_of_transformers(model: TransformersModel, runner: RecordingRunner) -> None:
    assert_close(teacher_forced_logits(runner.runner, TOKENS, block_size=BLOCK_SIZE), model.logits(TOKENS))


def test_ragged_chunked_and_on_a_cached_prefix_it_gives_the_tokens_of_transformers(
    model: TransformersModel, runner: RecordingRunner
) -> None:
    engine = make_engine(runner, max_num_batched_tokens=16, max_num_seqs=4, num_kv_blocks=40)
    greedy = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    for prompts, has_cached in (
        ([TOKENS[:29], TOKENS[1:18], TOKENS[30:], TOKENS[3:14]], False),
        ([TOKENS[:24] + TOKENS[35:40], TOKENS[:29] + TOKENS[2:4]], True),
    ):
        runner.logits.clear()
        outputs = run_requests(engine, prompts, greedy)
        assert [output.num_cached_tokens > 0 for output in outputs] == [has_cached] * len(prompts)
        for prompt, tokens, logits in runner.continuations(prompts, outputs):
            expected = model.logits([*prompt, *tokens])
            atol = TOLERANCE * max(1.0, float(np.abs(expected).max()))
            assert_same_tokens(expected, prompt, tokens, logits=logits, atol=atol, near_tie=2 * atol)


@pytest.mark.parametrize("model_type", ["granitemoe", "qwen3_moe", "gpt2"])
def test_weights_laid_out_as_the_modules_of_transformers_5(model_type: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.model_type == model_type)
    options: dict[str, Any] = {"save_original_format": False}
    model = TransformersModel(case.config, tmp_path, **options)
    if model_type == "gpt2":
        rename_tensors(tmp_path / "model.safetensors", "transformer.", "")
    assert_close(reference_logits(model.folder, TOKENS), model.logits(TOKENS))


def rename_tensors(file: Path, old_prefix: str, new_prefix: str) -> None:
    """As GPT-2's own checkpoint on the hub names them."""
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].replace(f'"{old_prefix}'.encode(), f'"{new_prefix}'.encode())
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
