"""Small configs of every family, as transformers takes them, with the features of the family switched on."""

from dataclasses import dataclass
from typing import Any

__all__ = ["CASES", "SIZES", "Case"]

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


@dataclass(frozen=True)
class Case:
    """name: of the case. model_type and fields: of the config, in the dialect of transformers 4."""

    name: str
    model_type: str
    fields: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        return {"model_type": self.model_type, **self.fields}


def case(name: str, model_type: str, **fields: Any) -> Case:
    return Case(name, model_type, {**SIZES, **fields})


MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.6,
    "logits_scaling": 0.7,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 2.0],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 5.0, 9.0],
}
GPT2 = {
    "vocab_size": 97,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": None,
    "eos_token_id": None,
}
FALCON = {key: value for key, value in SIZES.items() if key not in ("intermediate_size", "num_key_value_heads")}

CASES = (
    case(
        "llama3-biases",
        "llama",
        head_dim=16,
        attention_bias=True,
        mlp_bias=True,
        rope_theta=500.0,
        rope_scaling=LLAMA3,
        tie_word_embeddings=False,
    ),
    case("llama-linear", "llama", rope_scaling={"type": "linear", "factor": 2.5}, tie_word_embeddings=True),
    case("llama-yarn", "llama", head_dim=32, rope_scaling=YARN, num_key_value_heads=4, rms_norm_eps=1e-2),
    case("mistral", "mistral", head_dim=16, sliding_window=7, tie_word_embeddings=False, rope_theta=1e6),
    case(
        "qwen2-windows",
        "qwen2",
        num_hidden_layers=3,
        use_sliding_window=True,
        sliding_window=6,
        max_window_layers=1,
        tie_word_embeddings=True,
    ),
    case(
        "qwen3",
        "qwen3",
        num_hidden_layers=3,
        head_dim=16,
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=6,
        max_window_layers=2,
        rope_theta=1e6,
    ),
    case("phi2", "phi", partial_rotary_factor=0.5, layer_norm_eps=1e-3),
    case(
        "phi3-longrope",
        "phi3",
        hidden_size=64,
        sliding_window=9,
        partial_rotary_factor=0.75,
        rope_scaling=LONGROPE,
        original_max_position_embeddings=8,
    ),
    case("phi3-short", "phi3", tie_word_embeddings=True, max_position_embeddings=128),
    Case("gpt2", "gpt2", GPT2),
    Case(
        "gpt2-variants",
        "gpt2",
        {**GPT2, "n_inner": 40, "scale_attn_by_inverse_layer_idx": True, "activation_function": "gelu"},
    ),
    case(
        "gemma2",
        "gemma2",
        num_hidden_layers=3,
        head_dim=16,
        attention_bias=True,
        sliding_window=6,
        query_pre_attn_scalar=24,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=4.0,
        tie_word_embeddings=True,
    ),
    case(
        "gemma3",
        "gemma3_text",
        num_hidden_layers=4,
        head_dim=16,
        sliding_window=6,
        sliding_window_pattern=3,
        query_pre_attn_scalar=20,
        rope_theta=5e4,
        rope_local_base_freq=100.0,
        rope_scaling={"rope_type": "linear", "factor": 4.0},
        final_logit_softcapping=5.0,
        tie_word_embeddings=True,
    ),
    Case("falcon-7b", "falcon", {**FALCON, "multi_query": True, "num_attention_heads": 4}),
    Case("falcon-40b", "falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}),
    Case(
        "falcon-11b",
        "falcon",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    Case(
        "falcon-sequential",
        "falcon",
        {**FALCON, "multi_query": False, "parallel_attn": False, "bias": True, "ffn_hidden_size": 40},
    ),
    case("granite", "granite", attention_bias=True, mlp_bias=True, **MULTIPLIERS),
    case("granitemoe", "granitemoe", num_local_experts=5, num_experts_per_tok=2, attention_bias=True, **MULTIPLIERS),
    case(
        "qwen3-moe",
        "qwen3_moe",
        num_hidden_layers=3,
        head_dim=16,
        num_experts=6,
        num_experts_per_tok=3,
        moe_intermediate_size=24,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[1],
    ),
    case(
        "qwen3-moe-windows",
        "qwen3_moe",
        num_hidden_layers=3,
        num_experts=4,
        num_experts_per_tok=1,
        moe_intermediate_size=24,
        norm_topk_prob=False,
        decoder_sparse_step=2,
        use_sliding_window=True,
        sliding_window=6,
    ),
)
