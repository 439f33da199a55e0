"""Granite 3.x, dense: Llama's decoder with four multipliers, on embeddings, scores, branches and logits.

Source of the definition: arXiv 2408.13359 (its power scheduler's multipliers) and the published config.json files.
"""

from dataclasses import dataclass
from typing import TypeVar

from nanovllm.architectures.config_fields import Config, flag
from nanovllm.architectures.geometry import Context, attention_spec
from nanovllm.architectures.granite_multipliers import GraniteMultipliers
from nanovllm.architectures.llama_parts import LlamaParts
from nanovllm.architectures.ops import Geometry, Ops

__all__ = ["GraniteDecoder"]

V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class GraniteDecoder:
    """attention_bias: of all four projections of attention. mlp_bias: of all three layers of the MLP."""

    parts: LlamaParts
    multipliers: GraniteMultipliers
    attention_bias: bool
    mlp_bias: bool

    @classmethod
    def from_config(cls, config: Config, context: Context) -> "GraniteDecoder":
        """Raises `ArchitectureError`."""
        return cls(
            parts=LlamaParts.from_config(config, context, "granite"),
            multipliers=GraniteMultipliers.from_config(config),
            attention_bias=flag(config, "attention_bias", False),
            mlp_bias=flag(config, "mlp_bias", False),
        )

    @property
    def geometry(self) -> Geometry:
        return self.parts.geometry

    def logits(self, ops: Ops[V]) -> V:
        """Logits of the wanted rows, (num_wanted, vocab_size)."""
        p, m, bias = self.parts, self.multipliers, self.attention_bias
        x = ops.scale(p.embedding(ops), m.embedding)
        for layer in range(self.geometry.num_layers):
            normed = p.norm(ops, x, f"model.layers.{layer}.input_layernorm")
            spec = attention_spec(self.geometry, layer, scale=m.attention)
            x = ops.add(x, ops.scale(p.attention(ops, normed, spec, input_bias=bias, output_bias=bias), m.residual))
            normed = p.norm(ops, x, f"model.layers.{layer}.post_attention_layernorm")
            x = ops.add(x, ops.scale(p.mlp(ops, normed, layer, bias=self.mlp_bias), m.residual))
        return ops.scale(p.head(ops, x), 1 / m.logits_scaling)
