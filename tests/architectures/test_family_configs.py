"""Reading config.json of every family: both dialects, transformers' defaults, rope types, and refusals by name."""

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_configs import CASES, LONGROPE, SIZES, Case
from transformers_model import TransformersModel

from nanovllm.architectures import (
    SUPPORTED_MODEL_TYPES,
    ArchitectureError,
    UnknownArchitectureError,
    decoder_from_config,
)
from nanovllm.testing import ReferenceModel


def in_dialect_5(config: dict[str, Any]) -> dict[str, Any]:
    """The config as transformers 5 reads it and writes it, with its defaults filled in."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoConfig

        return AutoConfig.for_model(**copy.deepcopy(config)).to_dict()  # which writes into nested objects


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_both_dialects_give_the_same_decoder(case: Case) -> None:
    assert not {"rope_parameters", "layer_types"} & case.config.keys(), "not the dialect of transformers 4"
    assert decoder_from_config(case.config) == decoder_from_config(in_dialect_5(case.config))


# What the hub's files say, less what no decoder reads. Sizes are theirs.
PUBLISHED: dict[str, dict[str, Any]] = {
    "TinyLlama-1.1B-Chat-v1.0": {
        "model_type": "llama",
        "attention_bias": False,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "max_position_embeddings": 2048,
        "num_attention_heads": 32,
        "num_hidden_layers": 22,
        "num_key_value_heads": 4,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
    "Llama-3.2-1B": {
        "model_type": "llama",
        "attention_bias": False,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "vocab_size": 128256,
    },
    "Mistral-7B-v0.1": {
        "model_type": "mistral",
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
    "Mistral-7B-v0.3": {
        "model_type": "mistral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "vocab_size": 32768,
    },
    "Qwen3-0.6B": {
        "model_type": "qwen3",
        "attention_bias": False,
        "head_dim": 128,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "max_position_embeddings": 40960,
        "max_window_layers": 28,
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "Qwen3-30B-A3B": {
        "model_type": "qwen3_moe",
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "head_dim": 128,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "max_position_embeddings": 40960,
        "max_window_layers": 48,
        "mlp_only_layers": [],
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 4,
        "num_key_value_heads": 4,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "phi-2": {
        "model_type": "phi",
        "hidden_act": "gelu_new",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "partial_rotary_factor": 0.4,
        "qk_layernorm": False,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": 51200,
    },
    "Phi-3-mini-4k-instruct": {
        "model_type": "phi3",
        "attention_bias": False,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "max_position_embeddings": 4096,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "sliding_window": 2047,
        "tie_word_embeddings": False,
        "vocab_size": 32064,
    },
    "Phi-4-mini-instruct": {
        "model_type": "phi3",
        "attention_bias": False,
        "full_attn_mod": 1,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "interpolate_factor": 1,
        "lm_head_bias": False,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "num_attention_heads": 24,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 0.75,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"long_factor": [1.5] * 48, "short_factor": [1.0] * 48, "type": "longrope"},
        "rope_theta": 10000.0,
        "sliding_window": 262144,
        "tie_word_embeddings": True,
        "vocab_size": 200064,
    },
    "gpt2": {
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-05,
        "n_ctx": 1024,
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_positions": 1024,
        "vocab_size": 50257,
    },
    "gemma-2-2b": {
        "model_type": "gemma2",
        "attention_bias": False,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "max_position_embeddings": 8192,
        "num_attention_heads": 8,
        "num_hidden_layers": 26,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "vocab_size": 256000,
    },
    "gemma-3-1b-it": {
        "model_type": "gemma3_text",
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "max_position_embeddings": 32768,
        "num_attention_heads": 4,
        "num_hidden_layers": 26,
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "vocab_size": 262144,
    },
    "falcon-7b": {
        "model_type": "falcon",
        "alibi": False,
        "bias": False,
        "hidden_size": 4544,
        "layer_norm_epsilon": 1e-05,
        "multi_query": True,
        "new_decoder_architecture": False,
        "num_attention_heads": 71,
        "num_hidden_layers": 32,
        "parallel_attn": True,
        "vocab_size": 65024,
    },
    "granite-3.1-2b-instruct": {
        "model_type": "granite",
        "attention_bias": False,
        "attention_multiplier": 0.015625,
        "embedding_multiplier": 12.0,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "logits_scaling": 8.0,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "num_attention_heads": 32,
        "num_hidden_layers": 40,
        "num_key_value_heads": 8,
        "residual_multiplier": 0.22,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 5000000.0,
        "tie_word_embeddings": True,
        "vocab_size": 49155,
    },
}


@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED)
def test_published_configs_are_read_as_transformers_reads_them(config: dict[str, Any]) -> None:
    decoder = decoder_from_config(config)
    assert decoder == decoder_from_config(in_dialect_5(config))
    assert decoder.geometry.max_model_len > 1000


@pytest.mark.parametrize("model_type", SUPPORTED_MODEL_TYPES)
def test_missing_fields_have_the_defaults_of_transformers(model_type: str) -> None:
    needed = {key: value for key, value in SIZES.items() if not key.endswith("token_id")}
    if model_type == "falcon":  # whose file on the hub lacks the field
        del needed["max_position_embeddings"]
    config = {"model_type": model_type, **({"vocab_size": 97} if model_type == "gpt2" else needed)}
    assert decoder_from_config(config) == decoder_from_config(in_dialect_5(config))


def test_every_supported_model_type_has_a_case() -> None:
    assert {case.model_type for case in CASES} == set(SUPPORTED_MODEL_TYPES)


def config_of(model_type: str, **changes: Any) -> dict[str, Any]:
    """The first case of that type with fields replaced."""
    return {**next(case for case in CASES if case.model_type == model_type).config, **changes}


@pytest.mark.parametrize(
    ("model_type", "changes", "said"),
    [
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic' is not supported"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor is missing"),
        ("llama", {"rope_scaling": {"type": "default", "mrope_section": [2, 2]}}, "mrope_section"),
        ("llama", {"rope_scaling": {"type": "yarn", "factor": -1}}, "factor is -1"),
        ("llama", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("llama", {"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ("llama", {"attention_bias": "yes"}, "attention_bias is 'yes'"),
        ("mistral", {"layer_types": ["full_attention"] * 2}, "layer_types is"),
        ("mistral", {"sliding_window": 0}, "sliding_window is 0"),
        ("qwen2", {"use_sliding_window": False, "layer_types": ["sliding_attention"] * 3}, "use_sliding_window is off"),
        ("qwen3", {"layer_types": ["full_attention", "chunked_attention", "full_attention"]}, "chunked_attention"),
        ("qwen3", {"layer_types": ["full_attention"]}, "each of 3 layers"),
        ("phi", {"qk_layernorm": True}, "qk_layernorm is True"),
        ("phi3", {"rope_scaling": {**LONGROPE, "long_factor": [1.0]}}, "long_factor is of length 1"),
        ("phi3", {"rope_scaling": {**LONGROPE, "short_factor": ["1"] * 6}}, "short_factor is '1'"),
        ("phi3", {"rope_scaling": {**LONGROPE, "short_mscale": 1.2}}, "short_mscale is 1.2"),
        ("phi3", {"lm_head_bias": True}, "lm_head_bias is True"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention is True"),
        ("gpt2", {"n_embd": 33}, "n_embd"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("gemma3_text", {"attn_logit_softcapping": 30.0}, r"attn_logit_softcapping is 30\.0"),
        ("gemma3_text", {"sliding_window": None}, "sliding_window is null"),
        ("gemma3_text", {"rope_parameters": {"rope_type": "default"}}, "rope_parameters has rope_type"),
        ("falcon", {"alibi": True}, "alibi is True"),
        ("falcon", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn is 2"),
        ("granite", {"logits_scaling": 0}, "logits_scaling is 0"),
        ("granitemoe", {"num_experts_per_tok": 9}, "num_experts_per_tok is 9"),
        ("qwen3_moe", {"mlp_only_layers": "all"}, "mlp_only_layers is 'all'"),
        ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step is 0"),
    ],
)
def test_what_is_not_supported_or_wrong_is_refused_by_name_and_value(
    model_type: str, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ArchitectureError, match=said):
        decoder_from_config(config_of(model_type, **changes))


@pytest.mark.parametrize(
    ("model_type", "near"), [("gemma3", "gemma3_text"), ("qwen2_moe", "qwen3_moe"), ("phi4", "phi3"), ("mamba", None)]
)
def test_an_unknown_model_type_is_told_what_is_near_and_what_else_exports(model_type: str, near: str | None) -> None:
    with pytest.raises(UnknownArchitectureError, match=f"'{model_type}' is not supported") as raised:
        decoder_from_config({"model_type": model_type})
    assert "--exporter optimum" in str(raised.value)
    assert ("The nearest" in str(raised.value)) == (near is not None)
    assert near is None or near in str(raised.value).split("The nearest")[1]


def test_longrope_is_settled_by_the_length_that_the_model_is_built_for(tmp_path: Path) -> None:
    config = config_of("phi3")  # its original length is 8
    short, long = (decoder_from_config(config, max_model_len=length).geometry.rope for length in (8, 9))
    assert short is not None
    assert long is not None
    assert short.divisors == tuple(LONGROPE["short_factor"])
    assert long.divisors == tuple(LONGROPE["long_factor"])
    assert decoder_from_config(config).geometry.rope == long
    assert short.magnitude == long.magnitude > 1
    model = TransformersModel(config, tmp_path)
    tokens = list(range(8))
    built_short = ReferenceModel(tmp_path, max_model_len=8).logits(tokens)
    np.testing.assert_allclose(built_short, model.logits(tokens), atol=2e-4, rtol=0)
    assert np.abs(ReferenceModel(tmp_path).logits(tokens) - built_short).max() > 0.1


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_factor": 1.7},
        {"mscale": 0.9, "mscale_all_dim": 0.4},
        {"beta_fast": 4.0, "beta_slow": 0.5, "truncate": False},
        {"factor": 1.0},
    ],
)
def test_yarn_has_the_variants_of_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = next(case for case in CASES if case.name == "llama-yarn").config
    config = {**config, "rope_scaling": {**config["rope_scaling"], **changes}}
    tokens = list(range(30))
    model = TransformersModel(config, tmp_path)
    np.testing.assert_allclose(ReferenceModel(tmp_path).logits(tokens), model.logits(tokens), atol=5e-4, rtol=0)


def test_yarn_reaches_as_far_as_its_factor_says() -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    assert decoder_from_config(config_of("llama", rope_scaling=scaling)).geometry.max_model_len == 512
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    assert decoder_from_config(config_of("llama", rope_scaling=scaling)).geometry.max_model_len == 128
