"""Gemma 3, the text decoder (1B and smaller, and the text part of larger ones saved on its own).

As Gemma 2, but queries and keys are normed by head instead of capping the scores, and of six layers the last sees all
and turns by a slow, possibly scaled rope, while the others have a window and a fast one. Source of the definition:
arXiv 2503.19786 and the fields of the published config.json files.
"""

from dataclasses import dataclass
from typing import TypeVar

from nanovllm.architectures.config_fields import Config, count, flag, number, optional_number, refuse
from nanovllm.architectures.errors import ArchitectureError
from nanovllm.architectures.geometry import Context, Windows, attention_spec, layer_windows, read_head_dim
from nanovllm.architectures.llama_parts import LlamaParts
from nanovllm.architectures.ops import Geometry, Ops
from nanovllm.architectures.rope import Rope, make_rope, rope_object

__all__ = ["Gemma3TextDecoder"]

V = TypeVar("V")

_DEFAULTS = {"head_dim": 256, "num_key_value_heads": 4, "sliding_window": 4096, "tie_word_embeddings": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemma3TextDecoder:
    """local_rope: of layers with a window; the others have the geometry's. score_scale: factor on the scores.
    logit_cap: where logits are bent to, None for nowhere. attention_bias: of all four projections of attention."""

    parts: LlamaParts
    windows: Windows
    local_rope: Rope
    score_scale: float
    logit_cap: float | None
    attention_bias: bool

    @classmethod
    def from_config(cls, config: Config, context: Context) -> "Gemma3TextDecoder":
        """Raises `ArchitectureError`."""
        config = {**_DEFAULTS, **config}
        # transformers reads the cap on scores and does not apply it: nobody can have meant that
        refuse(config, "use_bidirectional_attention", "attn_logit_softcapping")
        if config["sliding_window"] is None:
            raise ArchitectureError("sliding_window is null; a size in tokens is needed.")
        global_rope, local_rope = _ropes(config, context)
        parts = LlamaParts.from_config(
            config,
            context,
            "gemma3_text",
            activation_key="hidden_activation",
            default_activation="gelu_pytorch_tanh",
            rope=global_rope,
            norm_offset=1.0,
        )
        num_layers, period = parts.geometry.num_layers, count(config, "sliding_window_pattern", 6)
        return cls(
            parts=parts,
            windows=layer_windows(config, num_layers, full=range(period - 1, num_layers, period)),
            local_rope=local_rope,
            score_scale=number(config, "query_pre_attn_scalar", 256.0) ** -0.5,
            logit_cap=optional_number(config, "final_logit_softcapping"),
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
            rope = None if window is None else self.local_rope
            spec = attention_spec(self.geometry, layer, scale=self.score_scale, window=window, rope=rope)
            normed = p.norm(ops, x, f"{name}.input_layernorm")
            attended = p.attention(ops, normed, spec, input_bias=bias, output_bias=bias, head_norms=True)
            x = ops.add(x, p.norm(ops, attended, f"{name}.post_attention_layernorm"))
            normed = p.norm(ops, x, f"{name}.pre_feedforward_layernorm")
            x = ops.add(x, p.norm(ops, p.mlp(ops, normed, layer), f"{name}.post_feedforward_layernorm"))
        logits = p.head(ops, x)
        return logits if self.logit_cap is None else ops.softcap(logits, self.logit_cap)


def _ropes(config: Config, context: Context) -> tuple[Rope, Rope]:
    """The rope of layers that see all, and that of layers with a window. transformers 4 writes rope_theta and
    rope_scaling for the former and rope_local_base_freq for the latter; transformers 5 one object for each."""
    by_type = rope_object(config, "rope_parameters")
    if not {"full_attention", "sliding_attention"}.issuperset(by_type):
        raise ArchitectureError(
            f"rope_parameters has {', '.join(by_type)}; it must have one object for full_attention and one for "
            "sliding_attention."
        )
    head_dim = read_head_dim(config)
    far = {**(by_type.get("full_attention") or {}), **rope_object(config, "rope_scaling")}
    near = {"rope_theta": number(config, "rope_local_base_freq", 1e4), **(by_type.get("sliding_attention") or {})}
    far_rope = make_rope(far, {"rope_theta": 1e6, **config}, head_dim, max_model_len=context.max_model_len)
    return far_rope, make_rope(near, config, head_dim, max_model_len=context.max_model_len)
