"""A mixture of experts out of stock operators, such that every expert computes only the rows that chose it.

    rows (T, features) --router, softmax, TopK--> shares and experts, (T, K) each
    the T * K pairs of row and expert, sorted by expert -> Gather the rows -> Split into one part an expert
    each expert computes its part, which may be empty   -> Concat -> back into the order of the pairs
    -> (T, K, features), times the shares, summed over K

What a row gets does not depend on the others' order: its K results are added in the order of their shares.
"""

from collections.abc import Sequence
from typing import Protocol

from onnx import TensorProto

from export.nodes import Nodes
from nanovllm.architectures import Activation, Linear, Mixture, Shard

__all__ = ["ExpertOps", "add_mixture"]


class ExpertOps(Protocol):
    """The operations of the exporter that experts are made of."""

    def linear(self, x: str, layers: Sequence[Linear], *, shard: Shard) -> tuple[str, ...]: ...

    def gated(self, gate: str, up: str, kind: Activation) -> str: ...


def add_mixture(ops: ExpertOps, nodes: Nodes, x: str, router: str, mixture: Mixture) -> str:
    """Adds the nodes of `Ops.moe` to `nodes`; returns the name of the result. router: its weight, planned."""
    shares, experts = _routing(nodes, x, router, mixture)
    pairs = nodes.add("Reshape", [experts, nodes.ints(-1)])  # (T * K,), the expert of each
    by_expert = _argsort(nodes, pairs)
    row_of_pair = nodes.add("Div", [by_expert, nodes.scalar(mixture.num_chosen)])
    parts = _split_by_expert(nodes, nodes.add("Gather", [x, row_of_pair], axis=0), pairs, len(mixture.experts))
    results: list[str] = []
    for part, layers in zip(parts, mixture.experts, strict=True):
        gate, up = ops.linear(part, [layers.gate, layers.up], shard="column")
        results += ops.linear(ops.gated(gate, up, mixture.activation), [layers.down], shard="row")
    sorted_results = nodes.add("Concat", results, axis=0)  # (T * K, features)
    in_order = nodes.add("Gather", [sorted_results, _argsort(nodes, by_expert)], axis=0)
    shape = nodes.add("Concat", [nodes.add("Shape", [experts]), nodes.ints(-1)], axis=0)
    by_row = nodes.add("Reshape", [in_order, shape])  # (T, K, features)
    weighted = nodes.add("Mul", [by_row, nodes.add("Unsqueeze", [shares, nodes.ints(-1)])])
    return nodes.add("ReduceSum", [weighted, nodes.ints(1)], keepdims=0)


def _routing(nodes: Nodes, x: str, router: str, mixture: Mixture) -> tuple[str, str]:
    """Shares, float, and numbers of the chosen experts, int64, (T, K) each. Of equal shares TopK takes the first."""
    all_shares = nodes.add("Softmax", [nodes.add("Gemm", [x, router], transB=1)], axis=-1)
    shares = f"{all_shares}.chosen"
    experts = f"{all_shares}.experts"
    nodes.add_many("TopK", [all_shares, nodes.ints(mixture.num_chosen)], [shares, experts], axis=-1)
    if mixture.normalize:
        shares = nodes.add("Div", [shares, nodes.add("ReduceSum", [shares, nodes.ints(-1)])])
    return shares, experts


def _argsort(nodes: Nodes, values: str) -> str:
    """Indices that sort int64 values, (n,), upwards; equal ones keep their order, as TopK promises."""
    name = f"{values}.sorted"
    nodes.add_many("TopK", [values, nodes.add("Shape", [values])], [name, f"{name}.order"], largest=0)
    return f"{name}.order"


def _split_by_expert(nodes: Nodes, rows: str, pairs: str, num_experts: int) -> list[str]:
    """One part of `rows` for each expert, of as many rows as pairs name it."""
    numbers = nodes.add("Unsqueeze", [nodes.ints(*range(num_experts)), nodes.ints(1)])
    chosen = nodes.add("Cast", [nodes.add("Equal", [numbers, pairs])], to=TensorProto.INT64)  # (experts, T * K)
    sizes = nodes.add("ReduceSum", [chosen, nodes.ints(1)], keepdims=0)
    parts = [f"{rows}.{i}" for i in range(num_experts)]
    nodes.add_many("Split", [rows, sizes], parts, axis=0)
    return parts
