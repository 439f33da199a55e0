"""model_info.json says how rotary positions are scaled, whichever dialect config.json speaks."""

import json
from pathlib import Path
from typing import Any

import pytest

from export import export_model
from nanovllm.model_info import ModelInfo
from nanovllm.testing import tiny_config

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SHORT, LONG = [1.0 + 0.1 * i for i in range(8)], [2.0 + i for i in range(8)]


def rope(folder: Path, max_model_len: int | None = None, **config: Any) -> dict[str, Any]:
    """What model_info.json says of a model with this config."""
    shape = folder / "shape"
    shape.mkdir()
    (shape / "config.json").write_text(json.dumps(tiny_config(**config)))
    export_model(shape, folder / "out", random_weights=True, max_model_len=max_model_len, progress=False)
    return dict(ModelInfo.load(folder / "out").rope)


@pytest.mark.parametrize(
    "dialect",
    [
        {"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "rope_theta": 5e5},
        {"rope_scaling": {"type": "llama3", **LLAMA3}, "rope_theta": 5e5},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
    ],
)
def test_llama3_is_told_alike_in_every_dialect(tmp_path: Path, dialect: dict[str, Any]) -> None:
    found = rope(tmp_path, model_type="llama", **dialect)
    assert found == {"theta": 5e5, "dim": 16, "interleaved": False, "scaling": {"rope_type": "llama3", **LLAMA3}}


def test_linear_is_told_with_its_factor(tmp_path: Path) -> None:
    found = rope(tmp_path, model_type="llama", rope_scaling={"type": "linear", "factor": 4.0})
    assert found["scaling"] == {"rope_type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
    "plain",
    [{}, {"rope_scaling": None}, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}],
)
def test_without_scaling_there_is_none(tmp_path: Path, plain: dict[str, Any]) -> None:
    assert rope(tmp_path, **plain) == {"theta": 1e4, "dim": 16, "interleaved": False, "scaling": None}


@pytest.mark.parametrize(("length", "picked"), [(64, "short_factor"), (65, "long_factor"), (None, "long_factor")])
def test_longrope_names_the_factors_that_were_picked(tmp_path: Path, length: int | None, picked: str) -> None:
    factors = {"short_factor": SHORT, "long_factor": LONG}
    found = rope(
        tmp_path,
        length,
        model_type="phi3",
        rope_scaling={"type": "longrope", **factors},
        original_max_position_embeddings=64,
        max_position_embeddings=256,
        pad_token_id=0,
    )
    assert found["scaling"] == {
        "rope_type": "longrope",
        **factors,
        "original_max_position_embeddings": 64,
        "picked": picked,
    }


def test_several_ropes_are_told_by_type_of_layer(tmp_path: Path) -> None:
    ropes = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    changes = {"model_type": "gemma3_text", "query_pre_attn_scalar": 16, "hidden_activation": "gelu_pytorch_tanh"}
    found = rope(tmp_path, rope_parameters=ropes, sliding_window=8, **changes)
    assert (found["theta"], found["scaling"]) == (1e6, ropes)
