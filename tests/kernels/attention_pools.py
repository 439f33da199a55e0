"""Pools of paged attention as each KV dtype keeps them, and what they stand for; bfloat16 is held as its bits."""

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from export.paged_attention import KVDType

Arrays = dict[str, npt.NDArray[Any]]


def pool_arrays(kind: str, features: npt.NDArray[np.float32], kv_dtype: KVDType) -> Arrays:
    """The node's inputs for "key" or "value". Where features are NaN, what is read will be NaN."""
    if kv_dtype == "float32":
        return {f"{kind}_cache": features}
    if kv_dtype == "bfloat16":
        return {f"{kind}_cache": features.astype(ml_dtypes.bfloat16).view(np.uint16)}
    largest = np.abs(features).max(-1) / np.float32(127)
    scale = np.where(np.isnan(largest), largest, np.maximum(largest, np.float32(2.0**-100)))
    whole = np.nan_to_num(np.round(features / scale[..., None]), nan=77)
    return {f"{kind}_cache": whole.astype(np.int8), f"{kind}_scale": scale.astype(np.float32)}


def read_pool(arrays: Arrays, kind: str, suffix: str = "") -> npt.NDArray[np.float32]:
    """The features that a pool stands for, (num_blocks, block_size, num_kv_heads, head_size)."""
    pool = arrays[f"{kind}_cache{suffix}"]
    if pool.dtype == np.uint16:
        return pool.view(ml_dtypes.bfloat16).astype(np.float32)
    if pool.dtype == np.int8:
        return pool.astype(np.float32) * arrays[f"{kind}_scale{suffix}"][..., None]
    return pool


def zeroed(pool: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A pool with 0 where it is NaN. Integers stay: without their scale they stand for 0."""
    if pool.dtype == np.uint16:
        return np.where(pool & 0x7FFF > 0x7F80, np.uint16(0), pool)
    return np.nan_to_num(pool) if pool.dtype == np.float32 else pool
