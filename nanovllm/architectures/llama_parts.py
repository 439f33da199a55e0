"""Parts that Llama and its many relatives share: the names of their tensors, RMS norms, projections, gated MLPs.

Each relative's file puts them together, says what it does otherwise, and is the place to read what it computes.
"""

from dataclasses import dataclass
from typing import TypeVar

from nanovllm.architectures.config_fields import Config, count, flag, number
from nanovllm.architectures.geometry import Context, read_geometry
from nanovllm.architectures.layers import HeadNorms, activation, attention, gated_layers, gated_mlp, linear
from nanovllm.architectures.ops import Activation, AttentionSpec, Geometry, Linear, Ops, Weight
from nanovllm.architectures.rope import Rope

__all__ = ["LlamaParts"]

V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaParts:
    """The fields that all relatives have, and what they mean. norm_offset: added to every norm's weight."""

    geometry: Geometry
    intermediate_size: int
    norm_eps: float
    activation: Activation
    tie_word_embeddings: bool
    norm_offset: float = 0.0

    @classmethod
    def from_config(
        cls,
        config: Config,
        context: Context,
        model_type: str,
        *,
        activation_key: str = "hidden_act",
        default_activation: str = "silu",
        rope: Rope | None = None,
        norm_offset: float = 0.0,
    ) -> "LlamaParts":
        """Reads config.json in the dialect of transformers 4 or 5. Raises `ArchitectureError`."""
        return cls(
            geometry=read_geometry(config, context, model_type, rope=rope),
            intermediate_size=count(config, "intermediate_size"),
            norm_eps=number(config, "rms_norm_eps", 1e-6),
            activation=activation(config, activation_key, default_activation),
            tie_word_embeddings=flag(config, "tie_word_embeddings", False),
            norm_offset=norm_offset,
        )

    def embedding(self, ops: Ops[V]) -> V:
        """Rows of the table, by token id."""
        return ops.embedding(self._table, "token_ids")

    def norm(self, ops: Ops[V], x: V, name: str) -> V:
        """RMS norm with the tensor `name`.weight."""
        weight = Weight(f"{name}.weight", (self.geometry.hidden_size,))
        return ops.rms_norm(x, weight, eps=self.norm_eps, offset=self.norm_offset)

    def attention(
        self,
        ops: Ops[V],
        x: V,
        spec: AttentionSpec,
        *,
        input_bias: bool = False,
        output_bias: bool = False,
        head_norms: bool = False,
    ) -> V:
        """Attention of one layer. head_norms: whether it has q_norm and k_norm."""
        g, name = self.geometry, f"model.layers.{spec.layer}.self_attn"
        width, kv_width = g.num_heads * g.head_dim, g.num_kv_heads * g.head_dim
        projections = [
            linear(f"{name}.{part}_proj", g.hidden_size, size, bias=input_bias)
            for part, size in (("q", width), ("k", kv_width), ("v", kv_width))
        ]
        out = linear(f"{name}.o_proj", width, g.hidden_size, bias=output_bias)
        query_norm, key_norm = (Weight(f"{name}.{part}_norm.weight", (g.head_dim,)) for part in "qk")
        norms = HeadNorms(query=query_norm, key=key_norm, eps=self.norm_eps, offset=self.norm_offset)
        return attention(ops, x, projections, out, spec, norms=norms if head_norms else None)

    def mlp(self, ops: Ops[V], x: V, layer: int, *, bias: bool = False) -> V:
        """The gated MLP of one layer."""
        layers = gated_layers(f"model.layers.{layer}.mlp", self.geometry.hidden_size, self.intermediate_size, bias=bias)
        return gated_mlp(ops, x, layers, self.activation)

    def head(self, ops: Ops[V], x: V) -> V:
        """Logits of the wanted rows: the last norm and the head, which may be the table."""
        x = self.norm(ops, ops.wanted_rows(x), "model.norm")
        weight = self._table if self.tie_word_embeddings else Weight("lm_head.weight", self._table.shape)
        (logits,) = ops.linear(x, [Linear(weight)], shard="vocab")
        return logits

    @property
    def _table(self) -> Weight:
        return Weight("model.embed_tokens.weight", (self.geometry.vocab_size, self.geometry.hidden_size))
