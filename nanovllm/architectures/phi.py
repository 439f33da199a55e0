"""Phi-1, Phi-1.5 and Phi-2: attention and MLP side by side on one layer norm, biases everywhere, partial rotation.

Source of the definition: arXiv 2309.05463 and the fields of the published config.json files.
"""

from dataclasses import dataclass
from typing import TypeVar

from nanovllm.architectures.config_fields import Config, count, flag, number, refuse
from nanovllm.architectures.geometry import Context, attention_spec, read_geometry
from nanovllm.architectures.layers import activation, attention, layer_norm, linear, plain_mlp
from nanovllm.architectures.ops import Activation, Geometry, Linear, Ops, Weight

__all__ = ["PhiDecoder"]

V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class PhiDecoder:
    """The decoder: `logits` says once what it computes."""

    geometry: Geometry
    intermediate_size: int
    norm_eps: float
    activation: Activation
    tie_word_embeddings: bool

    @classmethod
    def from_config(cls, config: Config, context: Context) -> "PhiDecoder":
        """Raises `ArchitectureError`."""
        refuse(config, "qk_layernorm")
        return cls(
            geometry=read_geometry({"partial_rotary_factor": 0.5, **config}, context, "phi"),
            intermediate_size=count(config, "intermediate_size"),
            norm_eps=number(config, "layer_norm_eps", 1e-5),
            activation=activation(config, "hidden_act", "gelu_new"),
            tie_word_embeddings=flag(config, "tie_word_embeddings", False),
        )

    def logits(self, ops: Ops[V]) -> V:
        """Logits of the wanted rows, (num_wanted, vocab_size)."""
        table = Weight("model.embed_tokens.weight", (self.geometry.vocab_size, self.geometry.hidden_size))
        x = ops.embedding(table, "token_ids")
        for layer in range(self.geometry.num_layers):
            normed = self._norm(ops, x, f"model.layers.{layer}.input_layernorm")
            x = ops.add(x, ops.add(self._attention(ops, normed, layer), self._mlp(ops, normed, layer)))
        x = self._norm(ops, ops.wanted_rows(x), "model.final_layernorm")
        head = table if self.tie_word_embeddings else Weight("lm_head.weight", table.shape)
        (logits,) = ops.linear(x, [Linear(head, Weight("lm_head.bias", table.shape[:1]))], shard="vocab")
        return logits

    def _attention(self, ops: Ops[V], x: V, layer: int) -> V:
        g, name = self.geometry, f"model.layers.{layer}.self_attn"
        width, kv_width = g.num_heads * g.head_dim, g.num_kv_heads * g.head_dim
        projections = [
            linear(f"{name}.{part}_proj", g.hidden_size, size, bias=True)
            for part, size in (("q", width), ("k", kv_width), ("v", kv_width))
        ]
        out = linear(f"{name}.dense", width, g.hidden_size, bias=True)
        return attention(ops, x, projections, out, attention_spec(g, layer))

    def _mlp(self, ops: Ops[V], x: V, layer: int) -> V:
        hidden, inner, name = self.geometry.hidden_size, self.intermediate_size, f"model.layers.{layer}.mlp"
        up, down = linear(f"{name}.fc1", hidden, inner, bias=True), linear(f"{name}.fc2", inner, hidden, bias=True)
        return plain_mlp(ops, x, up, down, self.activation)

    def _norm(self, ops: Ops[V], x: V, name: str) -> V:
        return layer_norm(ops, x, name, self.geometry.hidden_size, self.norm_eps)
