"""Phi-3, Phi-3.5 and Phi-4 (mini and 14B): Llama's decoder whose checkpoint fuses q, k, v and gate, up.

Further differences: some have a sliding window in every layer, some rotate a part of each head, and those for long
contexts use the rope type longrope. Source of the definition: arXiv 2404.14219 and the published config.json files.
"""

from dataclasses import dataclass
from typing import TypeVar

from nanovllm.architectures.config_fields import Config, refuse
from nanovllm.architectures.geometry import Context, Windows, attention_spec, layer_windows
from nanovllm.architectures.layers import attention, cut, gated_mlp, linear
from nanovllm.architectures.llama_parts import LlamaParts
from nanovllm.architectures.ops import GatedMLP, Geometry, Ops

__all__ = ["Phi3Decoder"]

V = TypeVar("V")

_DEFAULTS = {"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096}


@dataclass(frozen=True, slots=True, kw_only=True)
class Phi3Decoder:
    """The decoder: `logits` says once what it computes."""

    parts: LlamaParts
    windows: Windows

    @classmethod
    def from_config(cls, config: Config, context: Context) -> "Phi3Decoder":
        """Raises `ArchitectureError`."""
        refuse(config, "attention_bias", "mlp_bias", "lm_head_bias", "layer_types")
        parts = LlamaParts.from_config({**_DEFAULTS, **config}, context, "phi3")
        return cls(parts=parts, windows=layer_windows(config, parts.geometry.num_layers))

    @property
    def geometry(self) -> Geometry:
        return self.parts.geometry

    def logits(self, ops: Ops[V]) -> V:
        """Logits of the wanted rows, (num_wanted, vocab_size)."""
        p = self.parts
        x = p.embedding(ops)
        for layer in range(self.geometry.num_layers):
            x = ops.add(x, self._attention(ops, p.norm(ops, x, f"model.layers.{layer}.input_layernorm"), layer))
            x = ops.add(x, self._mlp(ops, p.norm(ops, x, f"model.layers.{layer}.post_attention_layernorm"), layer))
        return p.head(ops, x)

    def _attention(self, ops: Ops[V], x: V, layer: int) -> V:
        g, name = self.geometry, f"model.layers.{layer}.self_attn"
        width, kv_width = g.num_heads * g.head_dim, g.num_kv_heads * g.head_dim
        fused = linear(f"{name}.qkv_proj", g.hidden_size, width + 2 * kv_width)
        out = linear(f"{name}.o_proj", width, g.hidden_size)
        spec = attention_spec(g, layer, window=self.windows[layer])
        return attention(ops, x, cut(fused, (width, kv_width, kv_width)), out, spec)

    def _mlp(self, ops: Ops[V], x: V, layer: int) -> V:
        hidden, inner, name = self.geometry.hidden_size, self.parts.intermediate_size, f"model.layers.{layer}.mlp"
        gate, up = cut(linear(f"{name}.gate_up_proj", hidden, 2 * inner), (inner, inner))
        layers = GatedMLP(gate=gate, up=up, down=linear(f"{name}.down_proj", inner, hidden))
        return gated_mlp(ops, x, layers, self.parts.activation)
