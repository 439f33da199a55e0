"""Qwen3, dense: as Qwen2, but queries and keys are normed by head, and biases are rare.

Source of the definition: the technical report (arXiv 2505.09388) and the fields of the published config.json files.
"""

from dataclasses import dataclass
from typing import TypeVar

from nanovllm.architectures.config_fields import Config, flag
from nanovllm.architectures.geometry import Context, Windows, attention_spec
from nanovllm.architectures.llama_parts import LlamaParts
from nanovllm.architectures.ops import Geometry, Ops
from nanovllm.architectures.qwen_windows import qwen_windows

__all__ = ["DEFAULTS", "Qwen3Decoder"]

V = TypeVar("V")

DEFAULTS = {"head_dim": 128}
"""What transformers takes where config.json lacks a field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen3Decoder:
    """attention_bias: of all four projections of attention."""

    parts: LlamaParts
    windows: Windows
    attention_bias: bool

    @classmethod
    def from_config(cls, config: Config, context: Context) -> "Qwen3Decoder":
        """Raises `ArchitectureError`."""
        config = {**DEFAULTS, **config}
        parts = LlamaParts.from_config(config, context, "qwen3")
        return cls(
            parts=parts,
            windows=qwen_windows(config, parts.geometry.num_layers),
            attention_bias=flag(config, "attention_bias", False),
        )

    @property
    def geometry(self) -> Geometry:
        return self.parts.geometry

    def logits(self, ops: Ops[V]) -> V:
        """Logits of the wanted rows, (num_wanted, vocab_size)."""
        p, bias = self.parts, self.attention_bias
        x = p.embedding(ops)
        for layer, window in enumerate(self.windows):
            normed = p.norm(ops, x, f"model.layers.{layer}.input_layernorm")
            spec = attention_spec(self.geometry, layer, window=window)
            x = ops.add(x, p.attention(ops, normed, spec, input_bias=bias, output_bias=bias, head_norms=True))
            normed = p.norm(ops, x, f"model.layers.{layer}.post_attention_layernorm")
            x = ops.add(x, p.mlp(ops, normed, layer))
        return p.head(ops, x)
