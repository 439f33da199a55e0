"""Mistral 7B and its relatives: Llama's decoder with a sliding window in every layer, or none (from v0.2 on).

Source of the definition: arXiv 2310.06825 and the fields of the published config.json files.
"""

from dataclasses import dataclass
from typing import TypeVar

from nanovllm.architectures.config_fields import Config, refuse
from nanovllm.architectures.geometry import Context, Windows, attention_spec, layer_windows
from nanovllm.architectures.llama_parts import LlamaParts
from nanovllm.architectures.ops import Geometry, Ops

__all__ = ["MistralDecoder"]

V = TypeVar("V")

_DEFAULT_WINDOW = 4096  # transformers' where the field is missing; null means none


@dataclass(frozen=True, slots=True, kw_only=True)
class MistralDecoder:
    """The decoder: `logits` says once what it computes."""

    parts: LlamaParts
    windows: Windows

    @classmethod
    def from_config(cls, config: Config, context: Context) -> "MistralDecoder":
        """Raises `ArchitectureError`."""
        refuse(config, "layer_types")  # transformers ignores it here, Ministral's config means it
        parts = LlamaParts.from_config({"num_key_value_heads": 8, **config}, context, "mistral")
        return cls(parts=parts, windows=layer_windows(config, parts.geometry.num_layers, default=_DEFAULT_WINDOW))

    @property
    def geometry(self) -> Geometry:
        return self.parts.geometry

    def logits(self, ops: Ops[V]) -> V:
        """Logits of the wanted rows, (num_wanted, vocab_size)."""
        p = self.parts
        x = p.embedding(ops)
        for layer, window in enumerate(self.windows):
            normed = p.norm(ops, x, f"model.layers.{layer}.input_layernorm")
            x = ops.add(x, p.attention(ops, normed, attention_spec(self.geometry, layer, window=window)))
            normed = p.norm(ops, x, f"model.layers.{layer}.post_attention_layernorm")
            x = ops.add(x, p.mlp(ops, normed, layer))
        return p.head(ops, x)
