"""Falcon 7B, 11B, 40B and 180B: layer norms, rotary positions, GELU, attention and MLP side by side.

7B has one KV head for all query heads, 40B and larger (new_decoder_architecture) have groups. The fused projection
holds, group by group, the query heads of a group, its key head and its value head. Falcon3 is a Llama. Source of the
definition: arXiv 2311.16867 and the fields of the published config.json files.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from nanovllm.architectures.config_fields import Config, count, flag, number, refuse
from nanovllm.architectures.errors import ArchitectureError
from nanovllm.architectures.geometry import Context, attention_spec, read_geometry
from nanovllm.architectures.layers import activation, attention, layer_norm, linear, plain_mlp, rows
from nanovllm.architectures.ops import Activation, Geometry, Linear, Ops, Weight

__all__ = ["FalconDecoder"]

V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class FalconDecoder:
    """bias: of all linear layers but the head. parallel: whether attention and MLP read the same input. num_norms: that
    a layer has before attention and MLP; two in a parallel block are ln_attn and ln_mlp."""

    geometry: Geometry
    intermediate_size: int
    norm_eps: float
    activation: Activation
    bias: bool
    parallel: bool
    num_norms: int
    tie_word_embeddings: bool

    @classmethod
    def from_config(cls, config: Config, context: Context) -> "FalconDecoder":
        """Raises `ArchitectureError`."""
        refuse(config, "alibi", "head_dim")
        grouped = flag(config, "new_decoder_architecture", False)
        parallel = grouped or flag(config, "parallel_attn", True)
        geometry = read_geometry(_llama_names(config, grouped), context, "falcon")
        return cls(
            geometry=geometry,
            intermediate_size=count(config, "ffn_hidden_size", 4 * geometry.hidden_size),
            norm_eps=number(config, "layer_norm_epsilon", 1e-5),
            activation=activation(config, "activation", "gelu"),
            bias=flag(config, "bias", False),
            parallel=parallel,
            num_norms=_num_norms(config, grouped, parallel),
            tie_word_embeddings=flag(config, "tie_word_embeddings", True),
        )

    def logits(self, ops: Ops[V]) -> V:
        """Logits of the wanted rows, (num_wanted, vocab_size)."""
        table = Weight("transformer.word_embeddings.weight", (self.geometry.vocab_size, self.geometry.hidden_size))
        x = ops.embedding(table, "token_ids")
        for layer in range(self.geometry.num_layers):
            x = (self._parallel_layer if self.parallel else self._layer)(ops, x, layer)
        x = self._norm(ops, ops.wanted_rows(x), "transformer.ln_f")
        head = table if self.tie_word_embeddings else Weight("lm_head.weight", table.shape)
        (logits,) = ops.linear(x, [Linear(head)], shard="vocab")
        return logits

    def _parallel_layer(self, ops: Ops[V], x: V, layer: int) -> V:
        name = f"transformer.h.{layer}"
        if self.num_norms == 2:
            to_attend, to_mlp = (self._norm(ops, x, f"{name}.{part}") for part in ("ln_attn", "ln_mlp"))
        else:
            to_attend = to_mlp = self._norm(ops, x, f"{name}.input_layernorm")
        return ops.add(x, ops.add(self._mlp(ops, to_mlp, name), self._attention(ops, to_attend, name, layer)))

    def _layer(self, ops: Ops[V], x: V, layer: int) -> V:
        name = f"transformer.h.{layer}"
        x = ops.add(x, self._attention(ops, self._norm(ops, x, f"{name}.input_layernorm"), name, layer))
        return ops.add(x, self._mlp(ops, self._norm(ops, x, f"{name}.post_attention_layernorm"), name))

    def _attention(self, ops: Ops[V], x: V, name: str, layer: int) -> V:
        g = self.geometry
        num_rows = (g.num_heads + 2 * g.num_kv_heads) * g.head_dim
        fused = linear(f"{name}.self_attention.query_key_value", g.hidden_size, num_rows, bias=self.bias)
        out = linear(f"{name}.self_attention.dense", g.hidden_size, g.hidden_size, bias=self.bias)
        return attention(ops, x, self._projections(fused), out, attention_spec(g, layer))

    def _projections(self, fused: Linear) -> list[Linear]:
        """Queries, keys and values out of the groups of the fused projection."""
        g = self.geometry
        query_rows = g.num_heads // g.num_kv_heads * g.head_dim
        bounds = (0, query_rows, query_rows + g.head_dim, query_rows + 2 * g.head_dim)  # within a group
        starts = [group * bounds[-1] for group in range(g.num_kv_heads)]
        projections = []
        for first, last in pairwise(bounds):
            ranges = [(start + first, start + last) for start in starts]
            bias = None if fused.bias is None else rows(fused.bias, *ranges)
            projections.append(Linear(rows(fused.weight, *ranges), bias))
        return projections

    def _mlp(self, ops: Ops[V], x: V, name: str) -> V:
        hidden, inner = self.geometry.hidden_size, self.intermediate_size
        up = linear(f"{name}.mlp.dense_h_to_4h", hidden, inner, bias=self.bias)
        down = linear(f"{name}.mlp.dense_4h_to_h", inner, hidden, bias=self.bias)
        return plain_mlp(ops, x, up, down, self.activation)

    def _norm(self, ops: Ops[V], x: V, name: str) -> V:
        return layer_norm(ops, x, name, self.geometry.hidden_size, self.norm_eps)


def _llama_names(config: Config, grouped: bool) -> Config:
    """The config with Llama's name for the number of KV heads."""
    num_heads = count(config, "num_attention_heads")
    if grouped:
        num_kv_heads = count(config, "num_kv_heads", num_heads)
    else:
        num_kv_heads = 1 if flag(config, "multi_query", True) else num_heads
    return {"max_position_embeddings": 2048, **config, "num_key_value_heads": num_kv_heads}


def _num_norms(config: Config, grouped: bool, parallel: bool) -> int:
    given = count(config, "num_ln_in_parallel_attn", 2 if grouped else 1)
    if given > 2 or (given == 2 and not grouped and parallel):
        raise ArchitectureError(
            f"num_ln_in_parallel_attn is {given}; supported: 1, and 2 with new_decoder_architecture."
        )
    return given
