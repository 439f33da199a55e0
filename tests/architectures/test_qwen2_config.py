"""Reading Qwen2's config.json: both dialects, defaults, and refusal of what is not supported."""

from typing import Any

import pytest

from nanovllm.architectures import ArchitectureError, UnknownArchitectureError, decoder_from_config
from nanovllm.testing import tiny_config


def without(*keys: str, **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in tiny_config(**changes).items() if key not in keys}


def test_head_dim_is_taken_from_the_config_and_not_computed() -> None:
    geometry = decoder_from_config(tiny_config()).geometry
    assert geometry.head_dim == 16
    assert geometry.hidden_size // geometry.num_heads == 8


def test_head_dim_defaults_to_hidden_size_over_heads() -> None:
    assert decoder_from_config(without("head_dim")).geometry.head_dim == 8
    assert decoder_from_config(tiny_config(head_dim=None)).geometry.head_dim == 8


def test_kv_heads_default_to_heads() -> None:
    assert decoder_from_config(without("num_key_value_heads")).geometry.num_kv_heads == 6


@pytest.mark.parametrize(
    "dialect",
    [
        {"rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_scaling": None},
        {"rope_theta": 5e5, "rope_scaling": {"type": "default"}},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
        {"rope_theta": 1.0, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
    ],
)
def test_both_dialects_of_rope_give_the_same(dialect: dict[str, Any]) -> None:
    rope = decoder_from_config({**without("rope_theta"), **dialect}).geometry.rope
    assert rope is not None
    assert (rope.theta, rope.dim) == (5e5, 16)


def test_rope_theta_has_the_default_of_transformers() -> None:
    rope = decoder_from_config(without("rope_theta")).geometry.rope
    assert rope is not None
    assert rope.theta == 10000.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "'dynamic'"),
        ({"rope_parameters": {"rope_type": "axial"}}, "'axial'"),
        ({"rope_parameters": {"rope_type": ["default"]}}, "rope type"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"partial_rotary_factor": 0.3}, "partial_rotary_factor"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"hidden_size": "48"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"num_key_value_heads": 4}, "num_key_value_heads"),
        ({"head_dim": None, "hidden_size": 47}, "head_dim"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rope_theta": -1}, "rope_theta"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ],
)
def test_what_is_not_supported_or_wrong_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ArchitectureError, match=said):
        decoder_from_config(tiny_config(**changes))


def test_windows_that_are_switched_on_begin_at_max_window_layers() -> None:
    on = tiny_config(use_sliding_window=True, sliding_window=9, max_window_layers=1)
    off = tiny_config(use_sliding_window=True, sliding_window=None, max_window_layers=1)
    by_type = {**on, "layer_types": ["full_attention", "sliding_attention"], "max_window_layers": 0}
    assert decoder_from_config(on) == decoder_from_config(by_type)
    assert decoder_from_config(on) != decoder_from_config(off) == decoder_from_config(tiny_config())


def test_windows_that_are_switched_off_are_no_reason_to_refuse() -> None:
    config = tiny_config(use_sliding_window=False, sliding_window=32768, max_window_layers=2)
    assert decoder_from_config(config).geometry.num_layers == 2


@pytest.mark.parametrize("model_type", ["bloom", "ops", None, ["qwen2"]])
def test_an_unknown_model_type_lists_the_known_ones(model_type: Any) -> None:
    with pytest.raises(UnknownArchitectureError, match="supported: qwen2"):
        decoder_from_config(tiny_config(model_type=model_type))
