"""One PagedAttention node as a model: random steps for it, run on the stock body or on a kernel library."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from attention_pools import pool_arrays, zeroed
from onnx import TensorProto, helper

from export.paged_attention import DOMAIN, DOMAIN_VERSION, OP_TYPES, OPSET, KVDType, paged_attention_function

MAX_POSITIONS = 4096
Arrays = dict[str, npt.NDArray[Any]]
POOLS = ("key_cache", "value_cache", "key_scale", "value_scale")


@dataclass(frozen=True, kw_only=True)
class AttentionShape:
    num_heads: int = 4
    num_kv_heads: int = 2
    head_size: int = 64
    rotary_dim: int | None = None
    """None: the whole head."""
    rotary_interleaved: int = 0
    window: int = 0
    softcap: float = 0.0
    block_size: int = 16
    kv_dtype: KVDType = "float32"

    @property
    def attributes(self) -> dict[str, int | float]:
        return {
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_kv_heads,
            "scale": self.head_size**-0.5,
            "rotary_dim": self.turned,
            "rotary_interleaved": self.rotary_interleaved,
            "window": self.window,
            "softcap": float(self.softcap),
        }

    @property
    def turned(self) -> int:
        return self.head_size // 2 * 2 if self.rotary_dim is None else self.rotary_dim


def open_node(shape: AttentionShape, library: Path | None, *, num_threads: int = 1) -> onnxruntime.InferenceSession:
    """A session of the node; with a library, on its kernel."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = num_threads
    settings.inter_op_num_threads = 1
    settings.enable_mem_pattern = False
    settings.log_severity_level = 4
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if num_threads > 1 else "0")
    if library is not None:
        settings.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(_model(shape), settings, providers=["CPUExecutionProvider"])


def _model(shape: AttentionShape) -> bytes:
    pool = {"float32": TensorProto.FLOAT, "bfloat16": TensorProto.BFLOAT16, "int8": TensorProto.INT8}[shape.kv_dtype]
    kinds = dict.fromkeys(("query_start", "context_lens", "block_tables", "slot_mapping"), TensorProto.INT32)
    kinds |= dict.fromkeys(("positions", "block_size"), TensorProto.INT64)
    kinds |= dict.fromkeys(("key_cache", "value_cache", "key_cache_out", "value_cache_out"), pool)
    ranks = {"query": 2, "key": 2, "value": 2, "block_tables": 2, "cos": 2, "sin": 2, "output": 2}
    ranks |= dict.fromkeys(("key_cache", "value_cache", "key_cache_out", "value_cache_out"), 4)
    ranks |= dict.fromkeys(("key_scale", "value_scale", "key_scale_out", "value_scale_out"), 3)

    def info(name: str) -> Any:
        axes = [f"{name}_{axis}" for axis in range(ranks.get(name, 1))]
        return helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), axes)

    function = paged_attention_function(windows=shape.window > 0, kv_dtype=shape.kv_dtype)
    inputs, outputs = list(function.input), list(function.output)
    node = helper.make_node(OP_TYPES[shape.kv_dtype], inputs, outputs, domain=DOMAIN, **shape.attributes)
    graph = helper.make_graph([node], "node", [info(name) for name in inputs], [info(name) for name in outputs])
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    model = helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=11)
    return bytes(model.SerializeToString())


def bound(session: onnxruntime.InferenceSession, inputs: Arrays, outputs: Arrays) -> Any:
    """A binding of the arrays, which the caller keeps alive."""
    binding = session.io_binding()
    for bind, arrays in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
        for name, array in arrays.items():
            kind = TensorProto.BFLOAT16 if array.dtype == np.uint16 else array.dtype.type
            bind(name, "cpu", 0, kind, array.shape, array.ctypes.data)
    return binding


@dataclass(frozen=True)
class Step:
    """inputs: of the node. num_computed: of each sequence, before the step. The pools read as NaN where nothing is."""

    shape: AttentionShape
    inputs: Arrays
    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]

    def run(self, session: onnxruntime.InferenceSession, *, nan: bool = True, in_place: bool = True) -> Arrays:
        """Outputs by name. nan: whether slots past the sequences hold NaN; else zeros, as the stock body needs."""
        inputs = {name: array.copy() for name, array in self.inputs.items()}
        outputs = {"output": np.full_like(inputs["query"], np.nan)}
        for name in POOLS:
            if name in inputs:
                inputs[name] = inputs[name] if nan else zeroed(inputs[name])
                outputs[f"{name}_out"] = inputs[name] if in_place else np.full_like(inputs[name], 7)
        session.run_with_iobinding(bound(session, inputs, outputs))
        return outputs

    def part(self, sequences: Sequence[int], first: int = 0, count: int | None = None) -> "Step":
        """Some sequences of the step alone; of each, only `count` queries from query `first` on, where the earlier
        ones must have been run."""
        rows, starts, contexts = [], [0], []
        for sequence in sequences:
            start, end = self.inputs["query_start"][sequence : sequence + 2]
            taken = range(start + first, end if count is None else min(start + first + count, end))
            rows += list(taken)
            starts.append(len(rows))
            contexts.append(self.context_lens[sequence] + first)
        inputs = dict(self.inputs)
        for name in ("query", "key", "value", "slot_mapping", "positions"):
            inputs[name] = self.inputs[name][rows]
        inputs["query_start"] = np.array(starts, np.int32)
        inputs["context_lens"] = np.array(contexts, np.int32)
        inputs["block_tables"] = self.inputs["block_tables"][list(sequences)]
        return Step(self.shape, inputs, tuple(np.diff(starts)), tuple(contexts))

    def rows(self, sequence: int) -> slice:
        start, end = self.inputs["query_start"][sequence : sequence + 2]
        return slice(int(start), int(end))


def random_step(
    shape: AttentionShape,
    lens: Sequence[tuple[int, int]],
    seed: int = 0,
    *,
    shared_blocks: int = 0,
    size: float = 1.0,
) -> Step:
    """lens: (context, queries) of each sequence. Blocks lie scattered; the first `shared_blocks` blocks of all contexts
    are the same ones. size: of the random features."""
    random = np.random.default_rng(seed)
    contexts, queries = (np.array(column) for column in zip(*lens, strict=True))
    num_tokens, widest = int(queries.sum()), max(1, int(-(-(contexts + queries).max() // shape.block_size)))
    tables = (1 + random.permutation(len(lens) * widest)).reshape(len(lens), widest).astype(np.int32)
    for row, context in zip(tables, contexts, strict=True):
        shared = min(shared_blocks, context // shape.block_size)
        row[:shared] = tables[0, :shared]
    positions = np.concatenate([context + np.arange(count) for context, count in lens]).astype(np.int64)
    sequence = np.repeat(np.arange(len(lens)), queries)
    slots = tables[sequence, positions // shape.block_size] * shape.block_size + positions % shape.block_size
    pools = _pools(shape, random, tables, contexts, size)
    angles = positions_angles(shape)
    block_size = np.array([shape.block_size], np.int64)

    def features(heads: int) -> npt.NDArray[np.float32]:
        return (size * random.standard_normal((num_tokens, heads * shape.head_size))).astype(np.float32)

    inputs: Arrays = {
        "query": features(shape.num_heads),
        "key": features(shape.num_kv_heads),
        "value": features(shape.num_kv_heads),
        **pool_arrays("key", pools[0], shape.kv_dtype),
        **pool_arrays("value", pools[1], shape.kv_dtype),
        "query_start": np.concatenate([[0], np.cumsum(queries)]).astype(np.int32),
        "context_lens": contexts.astype(np.int32),
        "block_tables": _with_rubbish(tables, contexts + queries, shape.block_size),
        "slot_mapping": slots.astype(np.int32),
        "positions": positions,
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
        "block_size": block_size,
    }
    return Step(shape, inputs, tuple(int(n) for n in queries), tuple(int(n) for n in contexts))


def positions_angles(shape: AttentionShape) -> npt.NDArray[np.float64]:
    half = shape.turned // 2
    return np.arange(MAX_POSITIONS)[:, None] * 10000.0 ** (-np.arange(half) / max(half, 1))[None, :]


def _pools(
    shape: AttentionShape,
    random: np.random.Generator,
    tables: npt.NDArray[np.int32],
    contexts: npt.NDArray[np.int64],
    size: float,
) -> npt.NDArray[np.float32]:
    """Both pools: random features in the slots of the contexts, NaN elsewhere. Block 0 belongs to nobody."""
    slots = (1 + tables.size) * shape.block_size
    pools = np.full((2, slots, shape.num_kv_heads, shape.head_size), np.nan, np.float32)
    for row, context in zip(tables, contexts, strict=True):
        places = np.arange(context)
        filled = row[places // shape.block_size] * shape.block_size + places % shape.block_size
        pools[:, filled] = size * random.standard_normal((2, context, *pools.shape[2:]))
    return pools.reshape(2, -1, shape.block_size, *pools.shape[2:])


def _with_rubbish(tables: npt.NDArray[np.int32], lens: npt.NDArray[np.int64], block_size: int) -> npt.NDArray[np.int32]:
    """The tables with 0 behind each sequence's blocks, and one column more."""
    wider = np.pad(tables, ((0, 0), (0, 1)))
    for row, length in zip(wider, lens, strict=True):
        row[-(-length // block_size) :] = 0
    return wider
