"""Paged attention in float64, one query at a time, over pools as a step left them."""

from typing import Any

import numpy as np
import numpy.typing as npt
from attention_node import Step
from attention_pools import Arrays, read_pool

Float64Array = npt.NDArray[np.float64]


def exact_output(step: Step, outputs: Arrays, *, rounded_queries: bool = False) -> Float64Array:
    """The node's output, float64 (num_tokens, num_heads * head_size). outputs: what the node made of the pools.
    rounded_queries: to 8 bits, as the contract allows where pools are int8."""
    shape, inputs = step.shape, step.inputs
    queries = _rounded(step) if rounded_queries else _rotated(step, np.float64)
    queries = queries * shape.head_size**-0.5  # (T, heads, features)
    rows = np.zeros(queries.shape)
    for sequence, context in enumerate(step.context_lens):
        place = context + np.arange(step.query_lens[sequence])
        reach = np.arange(context + step.query_lens[sequence])
        blocks = inputs["block_tables"][sequence][reach // shape.block_size]
        keys, values = (
            read_pool(outputs, kind, "_out")[blocks, reach % shape.block_size].astype(np.float64)
            for kind in ("key", "value")
        )
        seen = reach <= place[:, None]
        if shape.window:
            seen &= reach > place[:, None] - shape.window
        rows[step.rows(sequence)] = _attend(queries[step.rows(sequence)], keys, values, seen, shape.softcap)
    return rows.reshape(len(rows), -1)


def _attend(
    queries: Float64Array, keys: Float64Array, values: Float64Array, seen: npt.NDArray[np.bool_], softcap: float
) -> Float64Array:
    group = queries.shape[1] // keys.shape[1]
    scores = np.einsum("qhd,khd->qhk", queries, np.repeat(keys, group, 1))
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    scores = np.where(seen[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    result: Float64Array = np.einsum("qhk,khd->qhd", weights, np.repeat(values, group, 1))
    return result


def _rounded(step: Step) -> Float64Array:
    queries = _rotated(step, np.float32)
    scale = np.maximum(np.abs(queries).max(-1, keepdims=True) / np.float32(127), np.float32(2.0**-100))
    whole = np.round(queries * (np.float32(1) / scale))
    result: Float64Array = whole.astype(np.float64) * scale.astype(np.float64)
    return result


def _rotated(step: Step, dtype: type[np.floating[Any]]) -> npt.NDArray[Any]:
    shape = step.shape
    heads: Any = step.inputs["query"].reshape(-1, shape.num_heads, shape.head_size).astype(dtype)
    cos, sin = (step.inputs[name][step.inputs["positions"]][:, None].astype(dtype) for name in ("cos", "sin"))
    half = shape.turned // 2
    pairs = (slice(0, 2 * half, 2), slice(1, 2 * half, 2))
    first, second = pairs if shape.rotary_interleaved else (slice(0, half), slice(half, 2 * half))
    result: npt.NDArray[Any] = heads.copy()
    result[..., first] = heads[..., first] * cos - heads[..., second] * sin
    result[..., second] = heads[..., first] * sin + heads[..., second] * cos
    return result
