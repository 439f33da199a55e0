"""Gives an exported graph a smaller KV cache: float32 pools become bfloat16 or int8.

In: a model whose attention nodes are `PagedAttention_v1`, and its model_info.json. Out: both for the other dtype; the
weights stay where they are. `export.paged_attention` says what the nodes then do. Knows no runtime and no memory.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from export.paged_attention import DOMAIN, OP_TYPE, OP_TYPES, KVDType, paged_attention_function
from nanovllm.model_info import ModelInfo, TensorInfo

__all__ = ["kv_cache_info", "set_kv_cache_dtype"]

_ELEMENT_TYPES: dict[KVDType, int] = {
    "float32": TensorProto.FLOAT,
    "bfloat16": TensorProto.BFLOAT16,
    "int8": TensorProto.INT8,
}


def kv_cache_info(info: ModelInfo, kv_dtype: KVDType) -> ModelInfo:
    """What `info` says once the graph has been rewritten by `set_kv_cache_dtype`."""
    return replace(
        info,
        kv_cache=replace(info.kv_cache, dtype=kv_dtype),
        inputs=tuple(_tensors(info.inputs, kv_dtype)),
        outputs=tuple(_tensors(info.outputs, kv_dtype)),
    )


def set_kv_cache_dtype(model: ModelProto, kv_dtype: KVDType) -> None:
    """Rewrites `model`, whose cache is float32, in place.

    Its pools `key_cache.N` and `value_cache.N` take the new dtype; int8 adds `key_scale.N` and `value_scale.N`.
    """
    if kv_dtype == "float32":
        return
    nodes = [node for node in model.graph.node if node.domain == DOMAIN and node.op_type == OP_TYPE]
    for node in nodes:
        node.op_type = OP_TYPES[kv_dtype]
        if kv_dtype == "int8":
            node.input.extend([_scale_name(pool) for pool in node.input if _is_pool(pool)])
            node.output.extend([_scale_name(pool) for pool in node.output if _is_pool(pool)])
    for values in (model.graph.input, model.graph.output):
        scales = [_set_type(value, kv_dtype) for value in values if _is_pool(value.name)]
        if kv_dtype == "int8":
            values.extend(scales)
    for value in model.graph.value_info:
        if _is_pool(value.name):
            _set_type(value, kv_dtype)
    others = [function for function in model.functions if (function.domain, function.name) != (DOMAIN, OP_TYPE)]
    del model.functions[:]
    model.functions.extend([*others, paged_attention_function(windows=any(map(_has_window, nodes)), kv_dtype=kv_dtype)])


def _is_pool(name: str) -> bool:
    return name.startswith(("key_cache.", "value_cache.", "key_cache_out.", "value_cache_out."))


def _scale_name(pool: str) -> str:
    return pool.replace("_cache", "_scale", 1)


def _tensors(tensors: Iterable[TensorInfo], kv_dtype: KVDType) -> Iterator[TensorInfo]:
    for tensor in tensors:
        yield replace(tensor, dtype=kv_dtype) if _is_pool(tensor.name) else tensor
    for tensor in tensors:
        if kv_dtype == "int8" and _is_pool(tensor.name):
            yield replace(tensor, name=_scale_name(tensor.name), dtype="float32", shape=tensor.shape[:-1])


def _set_type(value: ValueInfoProto, kv_dtype: KVDType) -> ValueInfoProto:
    """Sets a pool's type; returns what its scales are."""
    tensor = value.type.tensor_type
    tensor.elem_type = _ELEMENT_TYPES[kv_dtype]
    axes = [axis.dim_param or axis.dim_value for axis in tensor.shape.dim]
    return helper.make_tensor_value_info(_scale_name(value.name), TensorProto.FLOAT, axes[:-1])


def _has_window(node: NodeProto) -> bool:
    return any(attribute.name == "window" and attribute.i > 0 for attribute in node.attribute)
