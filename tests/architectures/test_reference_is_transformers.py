"""The numpy oracle gives transformers' logits, for every dialect and layout of Qwen2 that we read."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from nanovllm.errors import CheckpointError
from nanovllm.testing import ReferenceModel, reference_logits, tiny_config, write_checkpoint

TOKENS = np.random.default_rng(3).integers(0, 211, 60).tolist()


def transformers_logits(folder: Path, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries that transformers imports
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            logits = model(torch.tensor([list(token_ids)])).logits[0].numpy()
    return np.asarray(logits, np.float32)


def save_with_transformers(folder: Path, *, dtype: str, seed: int, **changes: Any) -> None:
    """A random checkpoint in the layout that transformers itself writes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from transformers import Qwen2Config, Qwen2ForCausalLM

        torch.manual_seed(seed)
        config = tiny_config(initializer_range=0.2, **changes)
        model = Qwen2ForCausalLM(Qwen2Config(**config))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.3)
        model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size="40KB" if seed == 1 else "5GB")


@pytest.mark.parametrize(
    ("dtype", "seed", "changes"),
    [
        ("float32", 0, {}),
        ("bfloat16", 1, {"tie_word_embeddings": False}),
        ("float16", 2, {"num_key_value_heads": 6, "head_dim": 8, "rope_theta": 1e6}),
    ],
)
def test_on_what_transformers_saves(tmp_path: Path, dtype: str, seed: int, changes: dict[str, Any]) -> None:
    save_with_transformers(tmp_path, dtype=dtype, seed=seed, **changes)
    assert "rope_parameters" in json.loads((tmp_path / "config.json").read_text()), "the dialect of transformers 5"
    expected = transformers_logits(tmp_path, TOKENS)
    assert np.ptp(expected) > 1, "such flat logits would agree with anything"
    np.testing.assert_allclose(reference_logits(tmp_path, TOKENS), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(),
        tiny_config(tie_word_embeddings=False, num_attention_heads=3, num_key_value_heads=1, head_dim=32),
        tiny_config(rope_theta=5e5, rope_scaling=None, num_hidden_layers=1),
    ],
)
def test_on_the_dialect_of_transformers_4(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = write_checkpoint(tmp_path / "model", config, seed=4, num_shards=2)
    np.testing.assert_allclose(reference_logits(folder, TOKENS), transformers_logits(folder, TOKENS), atol=1e-4, rtol=0)


def test_float64_confirms_float32(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    exact = reference_logits(folder, TOKENS, dtype=np.float64)
    np.testing.assert_allclose(reference_logits(folder, TOKENS), exact, atol=1e-4, rtol=0)


def test_later_tokens_do_not_change_earlier_logits(tmp_path: Path) -> None:
    model = ReferenceModel(write_checkpoint(tmp_path / "model"))
    np.testing.assert_allclose(model.logits(TOKENS)[:20], model.logits(TOKENS[:20]), atol=1e-5, rtol=0)


def test_greedy_continues_with_the_most_likely_token(tmp_path: Path) -> None:
    model = ReferenceModel(write_checkpoint(tmp_path / "model"))
    tokens = model.greedy(TOKENS[:5], 4)
    logits = model.logits(TOKENS[:5] + tokens)
    assert tokens == logits[4:8].argmax(-1).tolist()


def test_an_unsupported_config_is_a_checkpoint_error(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps(tiny_config(use_sliding_window=True)))
    with pytest.raises(CheckpointError, match="sliding"):
        ReferenceModel(folder)
