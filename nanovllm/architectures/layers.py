"""What several families are made of: named linear layers, cut and turned weights, attention, MLPs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TypeVar

from nanovllm.architectures.config_fields import Config, choice
from nanovllm.architectures.ops import Activation, AttentionSpec, GatedMLP, Linear, Ops, Stored, Weight

__all__ = [
    "HeadNorms",
    "activation",
    "attention",
    "cut",
    "gated_layers",
    "gated_mlp",
    "layer_norm",
    "linear",
    "plain_mlp",
    "rows",
    "turned",
]

V = TypeVar("V")

_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def activation(config: Config, key: str, default: str) -> Activation:
    """An activation by the name that transformers gives it; `default` where the field is missing or null."""
    return _ACTIVATIONS[choice(config, key, tuple(_ACTIVATIONS), default)]


def linear(name: str, in_features: int, out_features: int, *, bias: bool = False) -> Linear:
    """The layer whose tensors are `name`.weight and `name`.bias."""
    weight = Weight(f"{name}.weight", (out_features, in_features))
    return Linear(weight, Weight(f"{name}.bias", (out_features,)) if bias else None)


def turned(layer: Linear) -> Linear:
    """The layer where the checkpoint keeps its weight as (in_features, out_features)."""
    out_features, in_features = layer.weight.shape
    stored = Stored((in_features, out_features), ((0, out_features),), transposed=True)
    return Linear(Weight(layer.weight.name, layer.weight.shape, stored), layer.bias)


def rows(whole: Weight, *ranges: tuple[int, int]) -> Weight:
    """Rows (start, stop) of a weight, one range after the other; a stack of matrices has all their rows."""
    num_rows = sum(stop - start for start, stop in ranges)
    shape = (num_rows, whole.shape[-1]) if len(whole.shape) > 1 else (num_rows,)
    transposed = whole.stored is not None and whole.stored.transposed
    return Weight(whole.name, shape, Stored(whole.stored_shape, ranges, transposed))


def cut(whole: Linear, sizes: Sequence[int]) -> list[Linear]:
    """The layers of `sizes` output features each that one layer of the checkpoint holds one after the other."""
    return [
        Linear(rows(whole.weight, part), None if whole.bias is None else rows(whole.bias, part))
        for part in pairwise(accumulate(sizes, initial=0))
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadNorms:
    """RMS norms of each head of queries and keys, (head_dim,) each, before they are rotated."""

    query: Weight
    key: Weight
    eps: float
    offset: float = 0.0


def attention(
    ops: Ops[V],
    x: V,
    projections: Sequence[Linear],
    out: Linear,
    spec: AttentionSpec,
    *,
    norms: HeadNorms | None = None,
) -> V:
    """Attention between its projections. projections: of queries, keys and values."""
    heads = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
    layers = [replace(layer, heads=count) for layer, count in zip(projections, heads, strict=True)]
    query, key, value = ops.linear(x, layers, shard="column")
    if norms is not None:
        query = ops.rms_norm(query, norms.query, eps=norms.eps, offset=norms.offset, groups=spec.num_heads)
        key = ops.rms_norm(key, norms.key, eps=norms.eps, offset=norms.offset, groups=spec.num_kv_heads)
    (projected,) = ops.linear(ops.attention(query, key, value, spec), [out], shard="row")
    return projected


def gated_layers(name: str, in_features: int, inner: int, *, bias: bool = False) -> GatedMLP:
    """The layers gate_proj, up_proj and down_proj under `name`."""
    return GatedMLP(
        gate=linear(f"{name}.gate_proj", in_features, inner, bias=bias),
        up=linear(f"{name}.up_proj", in_features, inner, bias=bias),
        down=linear(f"{name}.down_proj", inner, in_features, bias=bias),
    )


def gated_mlp(ops: Ops[V], x: V, layers: GatedMLP, kind: Activation) -> V:
    """down(kind(gate(x)) * up(x))."""
    gate, up = ops.linear(x, [layers.gate, layers.up], shard="column")
    (out,) = ops.linear(ops.gated(gate, up, kind), [layers.down], shard="row")
    return out


def plain_mlp(ops: Ops[V], x: V, up: Linear, down: Linear, kind: Activation) -> V:
    """down(kind(up(x)))."""
    (hidden,) = ops.linear(x, [up], shard="column")
    (out,) = ops.linear(ops.activation(hidden, kind), [down], shard="row")
    return out


def layer_norm(ops: Ops[V], x: V, name: str, features: int, eps: float) -> V:
    """Layer norm with the tensors `name`.weight and `name`.bias."""
    return ops.layer_norm(x, Weight(f"{name}.weight", (features,)), Weight(f"{name}.bias", (features,)), eps=eps)
