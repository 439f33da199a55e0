"""How a matrix of weights is stored and used: for each precision, what goes into the file and which nodes read it.

In: the float32 values of a matrix as row slices. Out: tensors in a `WeightPlan` and nodes in a graph. A linear layer
and an embedding of the same matrix in the same format share its tensors. Holds one slice of values at a time, and the
scales of one matrix.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

from export.block_linear import OP_TYPE as BLOCK_LINEAR
from export.nodes import Nodes
from export.paged_attention import DOMAIN
from export.panel_linear import OP_TYPE as PANEL_LINEAR
from export.panel_linear import fits_panels, in_panels, panel_shape
from export.quantize import BLOCK, num_blocks, quantize_blocks, quantize_rows
from export.quantized_linear import OP_TYPE as QUANTIZED_LINEAR
from export.weight_plan import WeightPlan
from nanovllm.errors import CheckpointError, ExportError

__all__ = ["Matrix", "WeightFormat", "weight_format"]

_SLICE_BYTES = 4 * 2**20  # of float32 values that are turned into something else at once

Values = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Matrix:
    """name: of its values in the plan. shape: (out_features or ids, in_features). slices: its values as float32, in
    consecutive row slices of at most the bytes given, but of at least one row. is_table: whether some of its rows are
    read without the others, by an embedding or a greedy head, so that each must lie in one piece."""

    name: str
    shape: tuple[int, int]
    slices: Callable[[int], Iterator[Values]]
    is_table: bool = False


class WeightFormat(Protocol):
    """One precision."""

    def linear(self, nodes: Nodes, plan: WeightPlan, x: str, matrix: Matrix, bias: str | None) -> str:
        """x @ matrix.T + bias, float32 (rows, out_features). bias: name of a float32 (out_features,)."""

    def embedding(self, nodes: Nodes, plan: WeightPlan, matrix: Matrix, ids: str) -> str:
        """Rows of the matrix by `ids`, float32 (num_ids, in_features)."""


def weight_format(precision: str) -> WeightFormat:
    """The format of one of `export.precision.PRECISIONS`."""
    return _FORMATS[precision]()


class _Float32:
    """`Gemm` with transB = 1: the checkpoint keeps weights as (out_features, in_features), so nothing is transposed."""

    def linear(self, nodes: Nodes, plan: WeightPlan, x: str, matrix: Matrix, bias: str | None) -> str:
        return nodes.add("Gemm", [x, self._stored(nodes, plan, matrix), *([] if bias is None else [bias])], transB=1)

    def embedding(self, nodes: Nodes, plan: WeightPlan, matrix: Matrix, ids: str) -> str:
        return nodes.add("Gather", [self._stored(nodes, plan, matrix), ids], axis=0)

    def _stored(self, nodes: Nodes, plan: WeightPlan, matrix: Matrix) -> str:
        return plan.add(matrix.name, matrix.shape, lambda: matrix.slices(4 * _SLICE_BYTES))


class _SmallFloat:
    """Stored in half the bytes and cast: a linear layer's weights once, at load, an embedding's rows after they are
    gathered."""

    def __init__(self, dtype: str) -> None:
        import ml_dtypes

        self._dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)

    def linear(self, nodes: Nodes, plan: WeightPlan, x: str, matrix: Matrix, bias: str | None) -> str:
        weight = nodes.add("Cast", [self._stored(plan, matrix)], to=TensorProto.FLOAT)
        return nodes.add("Gemm", [x, weight, *([] if bias is None else [bias])], transB=1)

    def embedding(self, nodes: Nodes, plan: WeightPlan, matrix: Matrix, ids: str) -> str:
        rows = nodes.add("Gather", [self._stored(plan, matrix), ids], axis=0)
        return nodes.add("Cast", [rows], to=TensorProto.FLOAT)

    def _stored(self, plan: WeightPlan, matrix: Matrix) -> str:
        return plan.add(f"{matrix.name}/{self._dtype.name}", matrix.shape, lambda: self._cast(matrix), self._dtype)

    def _cast(self, matrix: Matrix) -> Iterator[Values]:
        for values in matrix.slices(_SLICE_BYTES):
            with np.errstate(over="ignore"):
                cast = values.astype(self._dtype)
            if not np.isfinite(cast.astype(np.float32)).all():
                raise ExportError(
                    f"{matrix.name} holds {np.abs(values).max():g}, which {self._dtype.name} cannot. "
                    "Export in another precision, or keep the layer in one."
                )
            yield cast


class _Int8Rows:
    """A scale for each row. `PanelLinear`, or `QuantizedLinear` for tables and what does not fit into panels."""

    def linear(self, nodes: Nodes, plan: WeightPlan, x: str, matrix: Matrix, bias: str | None) -> str:
        if matrix.is_table or not fits_panels(*matrix.shape):
            op_type, stored = QUANTIZED_LINEAR, self._stored(plan, matrix)
        else:
            op_type, stored = PANEL_LINEAR, self._stored_in_panels(plan, matrix)
        output = f"quantized_linear.{len(nodes.protos)}"
        nodes.add_many(op_type, [x, *stored], [output], domain=DOMAIN)
        return output if bias is None else nodes.add("Add", [output, bias])

    def embedding(self, nodes: Nodes, plan: WeightPlan, matrix: Matrix, ids: str) -> str:
        integers, scales = (nodes.add("Gather", [name, ids], axis=0) for name in self._stored(plan, matrix))
        values = nodes.add("Cast", [integers], to=TensorProto.FLOAT)
        return nodes.add("Mul", [values, nodes.add("Unsqueeze", [scales, nodes.ints(1)])])

    def _stored(self, plan: WeightPlan, matrix: Matrix) -> tuple[str, str]:
        parts = _Quantized(matrix, quantize_rows)
        name = f"{matrix.name}/int8"
        return (
            plan.add(name, matrix.shape, parts.integers, np.int8),
            plan.add(f"{name}.scale", matrix.shape[:1], parts.scales),
        )

    def _stored_in_panels(self, plan: WeightPlan, matrix: Matrix) -> tuple[str, str]:
        parts = _Quantized(matrix, quantize_rows)
        name = f"{matrix.name}/int8.panels"
        return (
            plan.add(name, panel_shape(*matrix.shape), lambda: in_panels(parts.integers()), np.int8),
            plan.add(f"{name}.scale", matrix.shape[:1], parts.scales),
        )


class _Blocks:
    """`BlockLinear`: a scale for each block of a row."""

    def __init__(self, bits: int) -> None:
        self._bits = bits

    def linear(self, nodes: Nodes, plan: WeightPlan, x: str, matrix: Matrix, bias: str | None) -> str:
        output = f"block_linear.{len(nodes.protos)}"
        num_out, num_in = matrix.shape
        inputs = [x, *self._stored(plan, matrix), *([] if bias is None else [bias])]
        nodes.add_many(BLOCK_LINEAR, inputs, [output], domain=DOMAIN, N=num_out, K=num_in, bits=self._bits)
        return output

    def embedding(self, nodes: Nodes, plan: WeightPlan, matrix: Matrix, ids: str) -> str:
        rows, scales = (nodes.add("Gather", [name, ids], axis=0) for name in self._stored(plan, matrix))
        blocks, features = num_blocks(matrix.shape[1]), matrix.shape[1]
        integers = rows if self._bits == 8 else self._unpacked(nodes, rows, blocks)
        zero = nodes.number(2.0 ** (self._bits - 1))
        values = nodes.add("Sub", [nodes.add("Cast", [integers], to=TensorProto.FLOAT), zero])
        scaled = nodes.add("Mul", [values, nodes.add("Unsqueeze", [scales, nodes.ints(2)])])
        flat = nodes.add("Reshape", [scaled, nodes.ints(0, blocks * BLOCK)])
        if features == blocks * BLOCK:
            return flat
        return nodes.add("Slice", [flat, nodes.ints(0), nodes.ints(features), nodes.ints(1)])

    def _unpacked(self, nodes: Nodes, rows: str, blocks: int) -> str:
        """One number a byte, uint8 (num_ids, blocks, BLOCK)."""
        fifteen, four = (
            nodes.add("Constant", [], value=helper.make_tensor("number", TensorProto.UINT8, [], [value]))
            for value in (15, 4)
        )
        halves = (
            nodes.add("BitwiseAnd", [rows, fifteen]),
            nodes.add("BitShift", [rows, four], direction="RIGHT"),
        )
        pairs = nodes.add("Concat", [nodes.add("Unsqueeze", [half, nodes.ints(3)]) for half in halves], axis=3)
        return nodes.add("Reshape", [pairs, nodes.ints(0, blocks, BLOCK)])

    def _stored(self, plan: WeightPlan, matrix: Matrix) -> tuple[str, str]:
        parts = _Quantized(matrix, lambda values: quantize_blocks(values, self._bits))
        name = f"{matrix.name}/int{self._bits}.blocks"
        rows, blocks = matrix.shape[0], num_blocks(matrix.shape[1])
        return (
            plan.add(name, (rows, blocks, BLOCK * self._bits // 8), parts.integers, np.uint8),
            plan.add(f"{name}.scale", (rows, blocks), parts.scales),
        )


class _Quantized:
    """A matrix quantized while it is read once: its integers are written first, its scales are kept for after them."""

    def __init__(self, matrix: Matrix, quantize: Callable[[Values], tuple[Values, Values]]) -> None:
        self._matrix = matrix
        self._quantize = quantize
        self._scales: list[Values] = []

    def integers(self) -> Iterator[Values]:
        self._scales = []
        for values in self._matrix.slices(_SLICE_BYTES):
            integers, scales = self._quantize(values)
            if not np.isfinite(scales).all():
                raise CheckpointError(f"{self._matrix.name} holds a value that is not finite; it cannot be quantized.")
            self._scales.append(scales)
            yield integers

    def scales(self) -> Iterator[Values]:
        scales, self._scales = self._scales, []
        yield from scales


_FORMATS: dict[str, Callable[[], WeightFormat]] = {
    "fp32": _Float32,
    "fp16": lambda: _SmallFloat("float16"),
    "bf16": lambda: _SmallFloat("bfloat16"),
    "int8": _Int8Rows,
    "int8w": lambda: _Blocks(8),
    "int4": lambda: _Blocks(4),
}
