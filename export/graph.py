"""The exporter's interpreter of `Ops`: every operation adds nodes to an ONNX graph and its weights to a plan.

In: a decoder and a checkpoint. Out: `OnnxGraph`, that is the model without its weights, and the plan by which those are
written. Reads headers of the checkpoint, no values. Knows nothing about folders and about what runs the model.

Linear layers are `Gemm` with transB = 1: the checkpoint keeps weights as (out_features, in_features), so nothing is
transposed, layers that share an input are merged by writing their rows one after the other, the bias is free, and a
tied table is stored once for `Gather` and `Gemm`. ONNX Runtime packs such a weight when it loads it, and then runs as
fast as `MatMul` on a transposed one.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, helper

from export.nodes import Nodes
from export.paged_attention import DOMAIN, DOMAIN_VERSION, OP_TYPE, OPSET, paged_attention_function
from export.weight_plan import WeightPlan
from nanovllm.architectures import Activation, AttentionSpec, Decoder, Geometry, Ids, Linear, Rope, Shard, Weight
from nanovllm.checkpoint import Checkpoint
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


def build_graph(decoder: Decoder, checkpoint: Checkpoint, *, max_model_len: int, producer_version: str) -> OnnxGraph:
    """The graph of `decoder`. Raises `CheckpointError` where a weight is missing or of another shape.

    max_model_len: positions, in tokens, that the rotary tables reach.
    """
    ops = _OnnxOps(checkpoint, max_model_len)
    logits = decoder.logits(ops)
    ops.nodes.rename(logits, "logits")
    inputs, outputs = _interface(decoder.geometry)
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
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)],
        functions=[paged_attention_function(windows=ops.windows)],
        producer_name="nanovllm",
        producer_version=producer_version,
    )
    return OnnxGraph(model, ops.plan, inputs, outputs, ops.num_parameters)


def _interface(geometry: Geometry) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
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
        *(TensorInfo(name=f"{kind}_cache.{i}", dtype="float32", shape=pool) for i in layers for kind in _KINDS),
    )
    outputs = (
        TensorInfo(name="logits", dtype="float32", shape=("num_logits", geometry.vocab_size)),
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
            data_type=TensorProto.FLOAT,
            dims=tensor.shape,
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (("location", plan.file_name), ("offset", tensor.offset), ("length", tensor.num_bytes)):
            proto.external_data.add(key=key, value=str(value))
        protos.append(proto)
    return protos


class _OnnxOps:
    """`Ops` on names of values of the graph."""

    def __init__(self, checkpoint: Checkpoint, max_model_len: int) -> None:
        self._checkpoint = checkpoint
        self._max_model_len = max_model_len
        self._parameters: dict[str, int] = {}
        self.nodes = Nodes()
        self.plan = WeightPlan(WEIGHTS_FILE)
        self.windows = False
        self._block_size: str | None = None

    @property
    def num_parameters(self) -> int:
        """Numbers in all the checkpoint's tensors that the graph uses, each counted once."""
        return sum(self._parameters.values())

    def embedding(self, table: Weight, ids: Ids) -> str:
        return self.nodes.add("Gather", [self._weight([table]), ids], axis=0)

    def linear(self, x: str, layers: Sequence[Linear], *, shard: Shard) -> tuple[str, ...]:
        biases = [layer.bias for layer in layers if layer.bias is not None]
        if 0 < len(biases) < len(layers):
            return tuple(self.linear(x, [layer], shard=shard)[0] for layer in layers)
        parameters = [self._weight([layer.weight for layer in layers])] + ([self._weight(biases)] if biases else [])
        merged = self.nodes.add("Gemm", [x, *parameters], transB=1)
        if len(layers) == 1:
            return (merged,)
        sizes = self.nodes.ints(*(layer.weight.shape[0] for layer in layers))
        outputs = [f"{merged}.{i}" for i in range(len(layers))]
        self.nodes.add_many("Split", [merged, sizes], outputs, axis=1)
        return tuple(outputs)

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
            window=spec.window or 0,
            softcap=float(spec.softcap or 0.0),
        )
        self.windows |= spec.window is not None
        return output

    def activation(self, x: str, kind: Activation) -> str:
        if kind == "silu":
            return self.nodes.add("Mul", [x, self.nodes.add("Sigmoid", [x])])
        return self.nodes.add("Gelu", [x], approximate="tanh" if kind == "gelu_tanh" else "none")

    def gated(self, gate: str, up: str, kind: Activation) -> str:
        return self.nodes.add("Mul", [self.activation(gate, kind), up])

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
        tensors = [self._checkpoint.tensor(weight.name, weight.shape) for weight in weights]
        self._parameters.update({tensor.name: math.prod(tensor.shape) for tensor in tensors})

        def slices() -> Iterator[npt.NDArray[np.float32]]:
            for tensor in tensors:
                for values in tensor.slices(_SLICE_BYTES):
                    yield values + np.float32(offset) if offset else values

        shape = (sum(weight.shape[0] for weight in weights), *weights[0].shape[1:])
        terms = [weight.name for weight in weights] + ([f"{offset:g}"] if offset else [])
        return self.plan.add(f"weights/{' + '.join(terms)}", shape, slices)  # a name that no input and no result has

    def _tables(self, rope: Rope | None) -> tuple[str, str]:
        """Names of the tables of cosines and sines, (max_model_len, rotary_dim / 2) each."""
        name = "rope.none" if rope is None else f"rope.{rope.theta:g}.{rope.dim}"
        frequencies = [0.0] if rope is None else rope.inverse_frequencies()
        shape = (self._max_model_len, len(frequencies))
        cos, sin = (
            self.plan.add(f"{name}.{table}", shape, partial(_rotary_table, table, frequencies, shape[0]))
            for table in ("cos", "sin")
        )
        return cos, sin


_STEP_INPUTS = ("query_start", "context_lens", "block_tables", "slot_mapping", "positions")


def _rotary_table(table: str, frequencies: Sequence[float], num_positions: int) -> Iterator[npt.NDArray[np.float32]]:
    """cos or sin of position * frequency. The angle is float32, as where the models are trained."""
    function = np.cos if table == "cos" else np.sin
    rows = max(1, _SLICE_BYTES // (8 * len(frequencies)))
    for start in range(0, num_positions, rows):
        positions = np.arange(start, min(start + rows, num_positions), dtype=np.float32)
        yield function(positions[:, None] * np.array(frequencies, np.float32))
