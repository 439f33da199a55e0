"""Qwen2 and Qwen2.5: pre-norm decoder, grouped-query attention with biases on q, k and v, SwiGLU, rotary positions.

Source of the definition: the technical report (arXiv 2407.10671) and the fields of the published config.json files.
"""

from dataclasses import dataclass
from typing import TypeVar

from nanovllm.architectures.config_fields import Config
from nanovllm.architectures.geometry import Context, Windows, attention_spec
from nanovllm.architectures.llama_parts import LlamaParts
from nanovllm.architectures.ops import Geometry, Ops
from nanovllm.architectures.qwen_windows import qwen_windows

__all__ = ["Qwen2Decoder"]

V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen2Decoder:
    """The decoder: `logits` says once what it computes."""

    parts: LlamaParts
    windows: Windows

    @classmethod
    def from_config(cls, config: Config, context: Context) -> "Qwen2Decoder":
        """Raises `ArchitectureError`."""
        parts = LlamaParts.from_config(config, context, "qwen2")
        return cls(parts=parts, windows=qwen_windows(config, parts.geometry.num_layers))

    @property
    def geometry(self) -> Geometry:
        return self.parts.geometry

    def logits(self, ops: Ops[V]) -> V:
        """Logits of the wanted rows, (num_wanted, vocab_size)."""
        p = self.parts
        x = p.embedding(ops)
        for layer, window in enumerate(self.windows):
            normed = p.norm(ops, x, f"model.layers.{layer}.input_layernorm")
            x = ops.add(
                x, p.attention(ops, normed, attention_spec(self.geometry, layer, window=window), input_bias=True)
            )
            normed = p.norm(ops, x, f"model.layers.{layer}.post_attention_layernorm")
            x = ops.add(x, p.mlp(ops, normed, layer))
        return p.head(ops, x)
