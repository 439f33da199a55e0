"""Llama 1 to 3.x, and what has its architecture: TinyLlama, SmolLM2, Vicuna, Falcon3, Yi and others.

Pre-norm decoder with grouped-query attention, rotary positions and SwiGLU. Source of the definition: arXiv 2302.13971,
arXiv 2407.21783 and the fields of the published config.json files.
"""

from dataclasses import dataclass
from typing import TypeVar

from nanovllm.architectures.config_fields import Config, flag, refuse
from nanovllm.architectures.geometry import Context, attention_spec
from nanovllm.architectures.llama_parts import LlamaParts
from nanovllm.architectures.ops import Geometry, Ops

__all__ = ["LlamaDecoder"]

V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaDecoder:
    """attention_bias: of all four projections of attention. mlp_bias: of all three layers of the MLP."""

    parts: LlamaParts
    attention_bias: bool
    mlp_bias: bool

    @classmethod
    def from_config(cls, config: Config, context: Context) -> "LlamaDecoder":
        """Raises `ArchitectureError`."""
        refuse(config, "rope_interleaved")  # SmolLM2's files have it, switched off
        return cls(
            parts=LlamaParts.from_config(config, context, "llama"),
            attention_bias=flag(config, "attention_bias", False),
            mlp_bias=flag(config, "mlp_bias", False),
        )

    @property
    def geometry(self) -> Geometry:
        return self.parts.geometry

    def logits(self, ops: Ops[V]) -> V:
        """Logits of the wanted rows, (num_wanted, vocab_size)."""
        p, bias = self.parts, self.attention_bias
        x = p.embedding(ops)
        for layer in range(self.geometry.num_layers):
            normed = p.norm(ops, x, f"model.layers.{layer}.input_layernorm")
            spec = attention_spec(self.geometry, layer)
            x = ops.add(x, p.attention(ops, normed, spec, input_bias=bias, output_bias=bias))
            normed = p.norm(ops, x, f"model.layers.{layer}.post_attention_layernorm")
            x = ops.add(x, p.mlp(ops, normed, layer, bias=self.mlp_bias))
        return p.head(ops, x)
