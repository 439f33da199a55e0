"""`Ops` on one rank: every operation on this rank's part of the model, and sums over ranks where parts come together.

In: the operations as they are on one process. Out: the same interface, so that an architecture does not notice. Layers
of shard "column" keep a part of their outputs; the values between them and the next layer of shard "row" have a part
of their features; behind that layer the partial results are added up, and every rank has the whole again. The head is
cut by vocabulary and its logits gathered by rank 0; the others go on with no rows. Tables of embeddings are whole on
every rank: few of their rows are read, and on a CPU they stay in their file.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from backends.pytorch.parallel.collective import Collective
from backends.pytorch.parallel.division import column_part, expert_part, row_part
from nanovllm.architectures import Activation, AttentionSpec, Ids, Linear, Mixture, Ops, Shard, Weight

__all__ = ["DividedOps", "WholeOps"]


class WholeOps(Ops[int], Protocol):
    """`Ops` on places of a program, which takes further operations."""

    def apply(self, compute: Callable[[Tensor], Tensor], x: int) -> int:
        """An operation of one value that no architecture declares."""


class DividedOps:
    """ops: what computes. collective: whose rank's part is computed."""

    def __init__(self, ops: WholeOps, collective: Collective) -> None:
        self._ops = ops
        self._collective = collective
        self._rank = collective.rank
        self._heads: dict[int, tuple[int, int]] = {}  # by value that is cut by heads: all heads, and those of this rank

    def embedding(self, table: Weight, ids: Ids) -> int:
        return self._ops.embedding(table, ids)

    def linear(self, x: int, layers: Sequence[Linear], *, shard: Shard) -> tuple[int, ...]:
        if shard == "row":
            parts = self._ops.linear(x, [row_part(layer, self._rank) for layer in layers], shard=shard)
            return tuple(self._ops.apply(self._collective.all_reduce, part) for part in parts)
        cut = [column_part(layer, self._rank) for layer in layers]
        parts = self._ops.linear(x, cut, shard=shard)
        if shard == "vocab":
            return tuple(
                self._ops.apply(self._gather(layer.weight.shape[0]), part)
                for layer, part in zip(layers, parts, strict=True)
            )
        for layer, mine, part in zip(layers, cut, parts, strict=True):
            if layer.heads is not None and mine.heads is not None:
                self._heads[part] = layer.heads, mine.heads
        return parts

    def _gather(self, num_features: int) -> Callable[[Tensor], Tensor]:
        return lambda x: self._collective.gather(x, num_features)

    def rms_norm(self, x: int, weight: Weight, *, eps: float, offset: float = 0.0, groups: int = 1) -> int:
        heads = self._heads.get(x)
        if heads is None:
            return self._ops.rms_norm(x, weight, eps=eps, offset=offset, groups=groups)
        assert groups == heads[0], "a norm over several heads spans ranks, which no architecture does yet"
        normed = self._ops.rms_norm(x, weight, eps=eps, offset=offset, groups=heads[1])
        self._heads[normed] = heads
        return normed

    def layer_norm(self, x: int, weight: Weight, bias: Weight | None, *, eps: float) -> int:
        return self._ops.layer_norm(x, weight, bias, eps=eps)

    def attention(self, query: int, key: int, value: int, spec: AttentionSpec) -> int:
        (_, num_heads), (_, num_kv_heads) = self._heads[query], self._heads[key]
        part = replace(spec, num_heads=num_heads, num_kv_heads=num_kv_heads)
        return self._ops.attention(query, key, value, part)

    def activation(self, x: int, kind: Activation) -> int:
        return self._ops.activation(x, kind)

    def gated(self, gate: int, up: int, kind: Activation) -> int:
        return self._ops.gated(gate, up, kind)

    def moe(self, x: int, mixture: Mixture) -> int:
        experts = tuple(expert_part(expert, self._rank) for expert in mixture.experts)
        return self._ops.apply(self._collective.all_reduce, self._ops.moe(x, replace(mixture, experts=experts)))

    def add(self, a: int, b: int) -> int:
        return self._ops.add(a, b)

    def scale(self, x: int, factor: float) -> int:
        return self._ops.scale(x, factor)

    def softcap(self, x: int, cap: float) -> int:
        return self._ops.softcap(x, cap)

    def wanted_rows(self, x: int) -> int:
        return self._ops.wanted_rows(x)
