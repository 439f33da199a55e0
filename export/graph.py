"""The exporter's interpreter of `Ops`: every operation adds nodes to an ONNX graph and its weights to a plan.

In: a decoder and a checkpoint. Out: `OnnxGraph`, that is the model without its weights, and the plan by which those are
written. Reads headers of the checkpoint, no values. Knows nothing about folders and about what runs the model.

Every format of weights keeps them as the checkpoint does, (out_features, in_features). So layers that share an input
are merged by writing their rows one after the other, and a tied table is stored once for the embedding and the head.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import FunctionProto, ModelProto, OperatorSetIdProto, TensorProto, helper

from export.block_linear import block_linear_function
from export.fused_linear import FORMS
from export.fusion import fuse_products
from export.gated_silu import OP_TYPE as GATED_SILU
from export.gated_silu import gated_silu_function
from export.greedy_head import IDS, INDICES, add_greedy_head, greedy_head_function
from export.moe import add_mixture
from export.nodes import Nodes
from export.paged_attention import DOMAIN, DOMAIN_VERSION, OP_TYPE, OPSET, paged_attention_function
from export.panel_linear import panel_linear_function
from export.precision import PrecisionPlan
from export.quantized_linear import MICROSOFT_DOMAIN, quantized_linear_function
from export.smoothing import Fold, Smoothing, find_folds
from export.weight_formats import Matrix, weight_format
from export.weight_plan import WeightPlan
from nanovllm.architectures import (
    Activation,
    AttentionSpec,
    Decoder,
    Geometry,
    Ids,
    Linear,
    Mixture,
    Rope,
    Shard,
    Weight,
)
from nanovllm.checkpoint import Checkpoint, Tensor
from nanovllm.model_info import TensorInfo

__all__ = ["WEIGHTS_FILE", "OnnxGraph", "build_graph"]

WEIGHTS_FILE = "model.onnx.data"
_IR_VERSION = 11  # the one of opset 23; newer ones are refused by ONNX Runtime 1.31
_SLICE_BYTES = 16 * 2**20  # of one slice of a weight while it is written

_DTYPES = {"int32": TensorProto.INT32, "int64": TensorProto.INT64, "float32": TensorProto.FLOAT}


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """A model whose weights are yet to be written by `plan`, and what its inputs and outputs are."""

    model: ModelProto
    plan: WeightPlan
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    num_parameters: int


def build_graph(
    decoder: Decoder,
    checkpoint: Checkpoint,
    *,
    max_model_len: int,
    producer_version: str,
    precisions: PrecisionPlan | None = None,
    smoothing: bool = True,
    sketch: bool = True,
) -> OnnxGraph:
    """The graph of `decoder`. Raises `CheckpointError` where a weight is missing or of another shape.

    max_model_len: positions, in tokens, that the rotary tables reach. precisions: which layer gets which, by default
    float32; notes what it gave. smoothing: whether outlying channels are folded into weights; see `export.smoothing`.
    sketch: whether an int8 head gets a sketch; see `export.greedy_head`.
    """
    precisions = precisions or PrecisionPlan()
    ops = _OnnxOps(checkpoint, max_model_len, precisions, find_folds(decoder, precisions) if smoothing else ())
    logits = decoder.logits(ops)
    is_greedy = add_greedy_head(ops.nodes, ops.plan, logits, sketch=sketch)
    ops.nodes.rename(logits, "logits")
    inputs, outputs = _interface(decoder.geometry, is_greedy=is_greedy)
    vectors = {tensor.name for tensor in ops.plan.tensors.values() if len(tensor.shape) == 1}
    fuse_products(ops.nodes, vectors, {tensor.name for tensor in outputs})
    graph = helper.make_graph(
        ops.nodes.protos,
        decoder.geometry.model_type,
        [_value_info(tensor) for tensor in inputs],
        [_value_info(tensor) for tensor in outputs],
        _initializers(ops.plan),
    )
    model = helper.make_model(
        graph,
        ir_version=_IR_VERSION,
        opset_imports=_opset_imports(ops.nodes),
        functions=_functions(ops),
        producer_name="nanovllm",
        producer_version=producer_version,
    )
    return OnnxGraph(model, ops.plan, inputs, outputs, ops.num_parameters)


def _opset_imports(nodes: Nodes) -> list[OperatorSetIdProto]:
    versions = {"": OPSET, DOMAIN: DOMAIN_VERSION, MICROSOFT_DOMAIN: 1}
    used = {"", DOMAIN, *(node.domain for node in nodes.protos)}
    return [helper.make_opsetid(domain, version) for domain, version in versions.items() if domain in used]


def _functions(ops: "_OnnxOps") -> list[FunctionProto]:
    """The model-local functions that the graph calls."""
    used = {node.op_type for node in ops.nodes.protos if node.domain == DOMAIN}  # a greedy head calls the linear layer
    forms = [form for form in FORMS if form.op_type in used]
    used.update(name for form in forms for name in form.calls)
    functions = (
        paged_attention_function(windows=ops.windows),
        quantized_linear_function(DOMAIN),
        panel_linear_function(DOMAIN),
        block_linear_function(DOMAIN),
        gated_silu_function(DOMAIN),
        greedy_head_function(DOMAIN),
    )
    return [function for function in functions if function.name in used] + [form.function(DOMAIN) for form in forms]


def _interface(geometry: Geometry, *, is_greedy: bool) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    pool = ("num_blocks", "block_size", geometry.num_kv_heads, geometry.head_dim)
    layers = range(geometry.num_layers)
    inputs = (
        TensorInfo(name="token_ids", dtype="int64", shape=("num_tokens",)),
        TensorInfo(name="positions", dtype="int64", shape=("num_tokens",)),
        TensorInfo(name="query_start", dtype="int32", shape=("num_seqs_plus_1",)),
        TensorInfo(name="context_lens", dtype="int32", shape=("num_seqs",)),
        TensorInfo(name="block_tables", dtype="int32", shape=("num_seqs", "max_blocks")),
        TensorInfo(name="slot_mapping", dtype="int32", shape=("num_tokens",)),
        TensorInfo(name="logits_indices", dtype="int32", shape=("num_logits",)),
        *([TensorInfo(name=INDICES, dtype="int32", shape=("num_greedy",))] if is_greedy else []),
        *(TensorInfo(name=f"{kind}_cache.{i}", dtype="float32", shape=pool) for i in layers for kind in _KINDS),
    )
    outputs = (
        TensorInfo(name="logits", dtype="float32", shape=("num_logits", geometry.vocab_size)),
        *([TensorInfo(name=IDS, dtype="int64", shape=("num_greedy",))] if is_greedy else []),
        *(TensorInfo(name=f"{kind}_cache_out.{i}", dtype="float32", shape=pool) for i in layers for kind in _KINDS),
    )
    return inputs, outputs


_KINDS = ("key", "value")


def _value_info(tensor: TensorInfo) -> Any:
    return helper.make_tensor_value_info(tensor.name, _DTYPES[tensor.dtype], tensor.shape)


def _initializers(plan: WeightPlan) -> list[TensorProto]:
    """References into the file of weights."""
    protos = []
    for tensor in plan.tensors.values():
        proto = TensorProto(
            name=tensor.name,
            data_type=helper.np_dtype_to_tensor_dtype(tensor.dtype),
            dims=tensor.shape,
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (("location", plan.file_name), ("offset", tensor.offset), ("length", tensor.num_bytes)):
            proto.external_data.add(key=key, value=str(value))
        protos.append(proto)
    return protos


class _OnnxOps:
    """`Ops` on names of values of the graph."""

    def __init__(
        self, checkpoint: Checkpoint, max_model_len: int, precisions: PrecisionPlan, folds: Sequence[Fold]
    ) -> None:
        self._checkpoint = checkpoint
        self._precisions = precisions
        self._smoothing = Smoothing(folds, self._read)
        self._max_model_len = max_model_len
        self._parameters: dict[str, int] = {}
        self._ropes: dict[Rope | None, str] = {}
        self._halves: dict[tuple[str, ...], str] = {}  # the whole of two results that are its equal halves
        self.nodes = Nodes()
        self.plan = WeightPlan(WEIGHTS_FILE)
        self.windows = False
        self._block_size: str | None = None

    @property
    def num_parameters(self) -> int:
        """Numbers in all the checkpoint's tensors that the graph uses, each counted once."""
        return sum(self._parameters.values())

    def embedding(self, table: Weight, ids: Ids) -> str:
        precision = self._precisions.of_embedding(table, ids)
        return weight_format(precision).embedding(self.nodes, self.plan, self._matrix([table], is_table=True), ids)

    def linear(self, x: str, layers: Sequence[Linear], *, shard: Shard) -> tuple[str, ...]:
        results: dict[int, str] = {}
        for (precision, has_bias), places in self._mergeable(layers, shard).items():
            merged = [layers[place] for place in places]
            bias = self._weight([layer.bias for layer in merged if layer.bias]) if has_bias else None
            matrix = self._matrix([layer.weight for layer in merged], is_table=shard == "vocab")
            output = weight_format(precision).linear(self.nodes, self.plan, x, matrix, bias)
            results.update(zip(places, self._split(output, merged), strict=True))
        return tuple(results[place] for place in range(len(layers)))

    def _mergeable(self, layers: Sequence[Linear], shard: Shard) -> dict[tuple[str, bool], list[int]]:
        """Places of the layers that can be one product, by precision and by whether they have a bias."""
        groups: dict[tuple[str, bool], list[int]] = {}
        for place, layer in enumerate(layers):
            precision = self._precisions.of_linear(layer.weight, shard)
            groups.setdefault((precision, layer.bias is not None), []).append(place)
        return groups

    def _split(self, merged: str, layers: Sequence[Linear]) -> list[str]:
        if len(layers) == 1:
            return [merged]
        sizes = self.nodes.ints(*(layer.weight.shape[0] for layer in layers))
        outputs = [f"{merged}.{i}" for i in range(len(layers))]
        self.nodes.add_many("Split", [merged, sizes], outputs, axis=1)
        if len(layers) == 2 and layers[0].weight.shape[0] == layers[1].weight.shape[0]:
            self._halves[tuple(outputs)] = merged
        return outputs

    def rms_norm(self, x: str, weight: Weight, *, eps: float, offset: float = 0.0, groups: int = 1) -> str:
        scale = self._weight([weight], offset)
        if groups == 1:
            return self.nodes.add("RMSNormalization", [x, scale], epsilon=eps)
        parts = self.nodes.add("Reshape", [x, self.nodes.ints(0, groups, -1)])
        normed = self.nodes.add("RMSNormalization", [parts, scale], epsilon=eps)
        return self.nodes.add("Reshape", [normed, self.nodes.ints(0, -1)])

    def layer_norm(self, x: str, weight: Weight, bias: Weight | None, *, eps: float) -> str:
        parameters = [self._weight([weight])] + ([] if bias is None else [self._weight([bias])])
        return self.nodes.add("LayerNormalization", [x, *parameters], epsilon=eps)

    def attention(self, query: str, key: str, value: str, spec: AttentionSpec) -> str:
        layer = spec.layer
        pools = [f"{kind}_cache.{layer}" for kind in _KINDS]
        self._block_size = self._block_size or self.nodes.add("Shape", pools[:1], "block_size", start=1, end=2)
        output = f"attention.{layer}"
        rotary_dim = 2 if spec.rope is None else spec.rope.dim
        window = spec.window or 0
        if window >= self._max_model_len:  # no sequence outgrows it
            window = 0
        self.nodes.add_many(
            OP_TYPE,
            [query, key, value, *pools, *_STEP_INPUTS, *self._tables(spec.rope), self._block_size],
            [output, *(f"{kind}_cache_out.{layer}" for kind in _KINDS)],
            domain=DOMAIN,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            scale=float(spec.scale),
            rotary_dim=rotary_dim,
            rotary_interleaved=int(spec.rope is not None and spec.rope.interleaved),
            window=window,
            softcap=float(spec.softcap or 0.0),
        )
        self.windows |= window > 0
        return output

    def activation(self, x: str, kind: Activation) -> str:
        if kind == "silu":
            return self.nodes.add("Mul", [x, self.nodes.add("Sigmoid", [x])])
        return self.nodes.add("Gelu", [x], approximate="tanh" if kind == "gelu_tanh" else "none")

    def gated(self, gate: str, up: str, kind: Activation) -> str:
        whole = self._halves.get((gate, up))
        if kind == "silu" and whole is not None:
            return self.nodes.add(GATED_SILU, [whole], domain=DOMAIN)  # the Split, now unread, is dropped at the end
        return self.nodes.add("Mul", [self.activation(gate, kind), up])

    def moe(self, x: str, mixture: Mixture) -> str:
        return add_mixture(self, self.nodes, x, self._weight([mixture.router]), mixture)

    def add(self, a: str, b: str) -> str:
        return self.nodes.add("Add", [a, b])

    def scale(self, x: str, factor: float) -> str:
        return self.nodes.add("Mul", [x, self.nodes.number(factor)])

    def softcap(self, x: str, cap: float) -> str:
        return self.nodes.add(
            "Mul",
            [self.nodes.add("Tanh", [self.nodes.add("Div", [x, self.nodes.number(cap)])]), self.nodes.number(cap)],
        )

    def wanted_rows(self, x: str) -> str:
        return self.nodes.add("Gather", [x, "logits_indices"], axis=0)

    def _weight(self, weights: Sequence[Weight], offset: float = 0.0) -> str:
        """Plans the weights, merged along their first axis, plus `offset`; returns the name of the whole."""
        name, shape, slices = self._merged(weights, offset)
        return self.plan.add(name, shape, lambda: slices(_SLICE_BYTES))

    def _matrix(self, weights: Sequence[Weight], *, is_table: bool) -> Matrix:
        """The weights, each (rows, features), one below the other."""
        name, (rows, features), slices = self._merged(weights)
        return Matrix(name, (rows, features), slices, is_table)

    def _merged(
        self, weights: Sequence[Weight], offset: float = 0.0
    ) -> tuple[str, tuple[int, ...], Callable[[int], Iterator[npt.NDArray[np.float32]]]]:
        """Name, shape and slices of weights that are merged along their first axis."""
        tensors = [self._checkpoint.tensor(weight.name, weight.stored_shape) for weight in weights]
        self._parameters.update({tensor.name: math.prod(tensor.shape) for tensor in tensors})

        def slices(max_bytes: int) -> Iterator[npt.NDArray[np.float32]]:
            for weight in weights:
                yield from self._smoothing.slices(weight, max_bytes, offset)

        shape = (sum(weight.shape[0] for weight in weights), *weights[0].shape[1:])
        terms = [_label(weight) for weight in weights] + ([f"{offset:g}"] if offset else [])
        return f"weights/{' + '.join(terms)}", shape, slices  # a name that no input and no result has

    def _read(self, weight: Weight, max_bytes: int) -> Iterator[npt.NDArray[np.float32]]:
        """The weight as the checkpoint has it, in row slices."""
        return _values(self._checkpoint.tensor(weight.name, weight.stored_shape), weight, max_bytes)

    def _tables(self, rope: Rope | None) -> tuple[str, str]:
        """Names of the tables of cosines and sines, (max_model_len, rotary_dim / 2) each."""
        name = self._ropes.setdefault(rope, "rope.none" if rope is None else f"rope.{len(self._ropes)}")
        frequencies, magnitude = ([0.0], 1.0) if rope is None else (rope.inverse_frequencies(), rope.magnitude)
        shape = (self._max_model_len, len(frequencies))
        cos, sin = (
            self.plan.add(f"{name}.{table}", shape, partial(_rotary_table, table, frequencies, magnitude, shape[0]))
            for table in ("cos", "sin")
        )
        return cos, sin


_STEP_INPUTS = ("query_start", "context_lens", "block_tables", "slot_mapping", "positions")


def _label(weight: Weight) -> str:
    """A name that tells a part of a tensor from the whole and from other parts."""
    if weight.stored is None:
        return weight.name
    return f"{weight.name}[{','.join(f'{start}:{stop}' for start, stop in weight.stored.ranges)}]"


def _values(tensor: Tensor, weight: Weight, max_bytes: int) -> Iterator[npt.NDArray[np.float32]]:
    """A weight in consecutive slices of its rows, taken out of the tensor that holds it; see `Stored`."""
    if weight.stored is None:
        yield from tensor.slices(max_bytes)
        return
    matrix = replace(tensor, shape=(math.prod(tensor.shape[:-1]), tensor.shape[-1])) if tensor.shape[1:] else tensor
    read = partial(_columns, matrix) if weight.stored.transposed else matrix.read_float32
    step = max(1, max_bytes // (4 * math.prod(weight.shape[1:])))
    for start, stop in weight.stored.ranges:
        for first in range(start, stop, step):
            yield read(first, min(first + step, stop))


def _columns(matrix: Tensor, start: int, stop: int) -> npt.NDArray[np.float32]:
    """Columns start .. stop as rows. Reads the whole tensor, but holds little of it beside what it returns."""
    columns = np.empty((stop - start, matrix.shape[0]), np.float32)
    done = 0
    for part in matrix.slices(_SLICE_BYTES // 4):
        columns[:, done : done + len(part)] = part[:, start:stop].T
        done += len(part)
    return columns


def _rotary_table(
    table: str, frequencies: Sequence[float], magnitude: float, num_positions: int
) -> Iterator[npt.NDArray[np.float32]]:
    """cos or sin of position * frequency, times magnitude. The angle is float32, as where the models are trained."""
    function = np.cos if table == "cos" else np.sin
    rows = max(1, _SLICE_BYTES // (8 * len(frequencies)))
    for start in range(0, num_positions, rows):
        positions = np.arange(start, min(start + rows, num_positions), dtype=np.float32)
        yield function(positions[:, None] * np.array(frequencies, np.float32)) * np.float32(magnitude)
