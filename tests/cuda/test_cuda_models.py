"""Whole models on a CUDA device: the logits and tokens of the CPU, with graphs and without."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanovllm import SamplingParams
from nanovllm.plugins import ModelRunner
from nanovllm.testing import (
    ModelRunnerConformance,
    ReferenceModel,
    assert_same_tokens,
    make_engine,
    run_requests,
    teacher_forced_logits,
    tiny_config,
    write_checkpoint,
)
from tests.architectures.family_configs import CASES, Case
from tests.pytorch.torch_driver import load_runner

pytestmark = pytest.mark.cuda

TOKENS = np.random.default_rng(1).integers(0, 97, 50).tolist()
PROMPTS = [TOKENS[:40], TOKENS[1:18], TOKENS[30:31], TOKENS[3:14], TOKENS[5:8]]
WINDOWS = {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1}
CONFIGS: dict[str, dict[str, Any]] = {
    "grouped heads, a window in one layer": {**WINDOWS},
    "norms of heads": {"model_type": "qwen3"},
    "long, so that keys are divided": {"max_position_embeddings": 8192},
}
NEAR_TIE = {"float32": 1e-3, "bfloat16": 0.2, "float16": 0.05}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_family_gives_the_logits_of_the_cpu(tmp_path: Path, case: Case) -> None:
    folder = write_checkpoint(tmp_path / "model", case.config)
    logits, expected = (
        teacher_forced_logits(load_runner(folder, device=device), TOKENS, block_size=16) for device in ("cuda", "cpu")
    )
    np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision_it_stays_near_the_oracle(tmp_path: Path, dtype: str) -> None:
    folder = write_checkpoint(tmp_path / "model", tiny_config(**WINDOWS))
    logits = teacher_forced_logits(load_runner(folder, device="cuda", dtype=dtype), TOKENS, block_size=16)
    expected = ReferenceModel(folder).logits(TOKENS)
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert 1e-6 < error < {"bfloat16": 0.06, "float16": 0.01}[dtype]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"enforce_eager": True}, {"torch_compile": True}], ids=str)
@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_chunks_decodes_and_graphs_give_the_tokens_of_the_oracle(
    tmp_path: Path, changes: dict[str, Any], options: dict[str, Any], dtype: str
) -> None:
    """Up to near-ties: a batch that is filled up may be multiplied by another kernel."""
    folder = write_checkpoint(tmp_path / "model", tiny_config(**changes))
    oracle = ReferenceModel(folder)
    for prompt, tokens in zip(PROMPTS, tokens_of(folder, dtype=dtype, **options), strict=True):
        share = 1 if dtype == "float32" else 0
        assert_same_tokens(oracle.logits, prompt, tokens, near_tie=NEAR_TIE[dtype], min_share=share)


def tokens_of(folder: Path, **options: Any) -> list[list[int]]:
    runner = load_runner(folder, device="cuda", **options)
    engine = make_engine(runner, max_num_seqs=5, max_num_batched_tokens=24, block_size=16, num_kv_blocks=600)
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    outputs = run_requests(engine, PROMPTS, params)
    engine.close()
    return [output.outputs[0].token_ids for output in outputs]


class TestConformance(ModelRunnerConformance):
    """The laws that every runner keeps, up to near-ties, which these weights do not have."""

    block_size = 16

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        self.folder = write_checkpoint(tmp_path_factory.mktemp("conformance"))

    def make_runner(self) -> ModelRunner:
        return load_runner(self.folder, device="cuda")
