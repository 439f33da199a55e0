"""Gemma 2: norms before and after attention and MLP, capped scores and logits, every other layer with a window.

Embeddings are scaled by sqrt(hidden_size), norms multiply by 1 + weight, the MLP is gated by GELU. Source of the
definition: arXiv 2408.00118 and the fields of the published config.json files.
"""

from dataclasses import dataclass
from typing import TypeVar

from nanovllm.architectures.config_fields import Config, flag, number, optional_number, refuse
from nanovllm.architectures.geometry import Context, Windows, attention_spec, layer_windows
from nanovllm.architectures.llama_parts import LlamaParts
from nanovllm.architectures.ops import Geometry, Ops

__all__ = ["Gemma2Decoder"]

V = TypeVar("V")

_DEFAULTS = {"head_dim": 256, "num_key_value_heads": 4, "tie_word_embeddings": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemma2Decoder:
    """score_scale: factor on the scores. score_cap, logit_cap: where scores and logits are bent to, None for nowhere.
    attention_bias: of all four projections of attention."""

    parts: LlamaParts
    windows: Windows
    score_scale: float
    score_cap: float | None
    logit_cap: float | None
    attention_bias: bool

    @classmethod
    def from_config(cls, config: Config, context: Context) -> "Gemma2Decoder":
        """Raises `ArchitectureError`."""
        config = {**_DEFAULTS, **config}
        refuse(config, "use_bidirectional_attention")
        parts = LlamaParts.from_config(
            config,
            context,
            "gemma2",
            activation_key="hidden_activation",
            default_activation="gelu_pytorch_tanh",
            norm_offset=1.0,
        )
        num_layers = parts.geometry.num_layers
        return cls(
            parts=parts,
            windows=layer_windows(config, num_layers, default=4096, full=range(1, num_layers, 2)),
            score_scale=number(config, "query_pre_attn_scalar", 256.0) ** -0.5,
            score_cap=optional_number(config, "attn_logit_softcapping", 50.0),
            logit_cap=optional_number(config, "final_logit_softcapping", 30.0),
            attention_bias=flag(config, "attention_bias", False),
        )

    @property
    def geometry(self) -> Geometry:
        return self.parts.geometry

    def logits(self, ops: Ops[V]) -> V:
        """Logits of the wanted rows, (num_wanted, vocab_size)."""
        p, bias = self.parts, self.attention_bias
        x = ops.scale(p.embedding(ops), self.geometry.hidden_size**0.5)
        for layer, window in enumerate(self.windows):
            name = f"model.layers.{layer}"
            spec = attention_spec(self.geometry, layer, scale=self.score_scale, window=window, softcap=self.score_cap)
            normed = p.norm(ops, x, f"{name}.input_layernorm")
            attended = p.attention(ops, normed, spec, input_bias=bias, output_bias=bias)
            x = ops.add(x, p.norm(ops, attended, f"{name}.post_attention_layernorm"))
            normed = p.norm(ops, x, f"{name}.pre_feedforward_layernorm")
            x = ops.add(x, p.norm(ops, p.mlp(ops, normed, layer), f"{name}.post_feedforward_layernorm"))
        logits = p.head(ops, x)
        return logits if self.logit_cap is None else ops.softcap(logits, self.logit_cap)
