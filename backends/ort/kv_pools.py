"""The memory of the paged KV cache: every layer's pools, in the dtype that the graph keeps.

In: what model_info.json says. Out: arrays with the names of the graph's inputs and outputs. Knows neither the graph's
nodes nor the engine's blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nanovllm.errors import KVCacheError
from nanovllm.model_info import ModelInfo
from nanovllm.resources import available_memory_bytes

__all__ = ["KVPool", "allocate_pools", "kv_bytes_per_block"]

_KINDS = ("key", "value")
_FLOAT, _INT8, _BFLOAT16 = 1, 3, 16  # onnx.TensorProto.DataType
_STORED: dict[str, tuple[type[np.generic], int]] = {  # numpy has no bfloat16: its bits are kept
    "float32": (np.float32, _FLOAT),
    "bfloat16": (np.uint16, _BFLOAT16),
    "int8": (np.int8, _INT8),
}
_SCALE_BYTES = 4


@dataclass(frozen=True, slots=True)
class KVPool:
    """One tensor of one layer: (num_blocks, block_size, num_kv_heads, head_dim), or without the last axis for scales.

    input, output: names in the graph, which updates `array` in place. element_type: as ONNX numbers them.
    """

    input: str
    output: str
    array: npt.NDArray[Any]
    element_type: int


def kv_bytes_per_block(info: ModelInfo, block_size: int) -> int:
    """Bytes of keys, values and scales that one block of `block_size` tokens takes in all layers."""
    bytes_per_head = info.head_dim * np.dtype(_STORED[info.kv_cache.dtype][0]).itemsize
    if _has_scales(info):
        bytes_per_head += _SCALE_BYTES
    return info.num_layers * 2 * block_size * info.num_kv_heads * bytes_per_head


def allocate_pools(info: ModelInfo, num_blocks: int, block_size: int) -> list[KVPool]:
    """Zeroed pools, whose pages are touched, so that no step pays for page faults. Raises `KVCacheError`."""
    num_bytes, free = num_blocks * kv_bytes_per_block(info, block_size), available_memory_bytes()
    if num_bytes > free:
        raise KVCacheError(_no_memory(num_blocks, block_size, num_bytes, f"{free / 2**20:,.0f} MiB are free"))
    try:
        return list(_pools(info, num_blocks, block_size))
    except MemoryError as error:
        raise KVCacheError(_no_memory(num_blocks, block_size, num_bytes, "the system refuses that")) from error


def _has_scales(info: ModelInfo) -> bool:
    return info.kv_cache.dtype == "int8"


def _pools(info: ModelInfo, num_blocks: int, block_size: int) -> Iterator[KVPool]:
    stored, element_type = _STORED[info.kv_cache.dtype]
    shape = (info.num_layers, len(_KINDS), num_blocks, block_size, info.num_kv_heads, info.head_dim)
    yield from _named("cache", _touched(shape, stored), element_type)
    if _has_scales(info):
        yield from _named("scale", _touched(shape[:-1], np.float32), _FLOAT)


def _touched(shape: tuple[int, ...], dtype: type[np.generic]) -> npt.NDArray[Any]:
    array = np.empty(shape, dtype)
    array.fill(0)
    return array


def _named(what: str, layers: npt.NDArray[Any], element_type: int) -> Iterator[KVPool]:
    """The pools of all layers, which lie one after the other in `layers`."""
    for number, layer in enumerate(layers):
        for kind, array in zip(_KINDS, layer, strict=True):
            yield KVPool(f"{kind}_{what}.{number}", f"{kind}_{what}_out.{number}", array, element_type)


def _no_memory(num_blocks: int, block_size: int, num_bytes: int, why: str) -> str:
    return (
        f"{num_blocks} KV blocks of {block_size} tokens take {num_bytes / 2**20:,.0f} MiB; {why}. Lower num_kv_blocks, "
        "kv_cache_memory_bytes or max_num_seqs, or choose a smaller kv_cache_dtype."
    )
