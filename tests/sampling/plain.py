"""The sampler's definition, followed word for word and slowly; and small builders for the tests beside it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nanovllm import SamplingParams
from nanovllm.batch import SAMPLING_ROW, Float64Array, Int64Array, LogitsEdits, SamplingBatch

Float32Array = npt.NDArray[np.float32]
UInt32Array = npt.NDArray[np.uint32]


def plain_draw(logits: Float32Array, row: np.void, u: float) -> int:
    """The token of one row: every weight sorted, every sum taken number by number."""
    if row["temperature"] == 0:
        return int(logits.argmax())
    weights = plain_weights(logits, row)
    running = np.cumsum(weights)
    above = np.flatnonzero(running > u * running[-1])
    return int(above[0]) if len(above) else int(np.flatnonzero(weights)[-1])


def plain_weights(logits: Float32Array, row: np.void) -> Float64Array:
    """Of every token of a random row; 0 where it is dropped."""
    with np.errstate(over="ignore"):
        weights = np.exp((logits.astype(np.float64) - float(logits.max())) / float(row["temperature"]))
    weights[weights < float(row["min_p"])] = 0.0
    if 0 < row["top_k"] < len(weights):
        weights[weights < np.sort(weights)[-int(row["top_k"])]] = 0.0
    if row["top_p"] < 1:
        descending = np.sort(weights)[::-1]
        running = np.cumsum(descending)
        reaching = np.flatnonzero(running >= float(row["top_p"]) * running[-1])
        weights[weights < descending[reaching[0]]] = 0.0
    return weights


def rows_of(*params: SamplingParams) -> npt.NDArray[np.void]:
    """SAMPLING_ROW, one for each of `params`, with their seeds or 0."""
    rows = np.zeros(len(params), SAMPLING_ROW)
    for row, param in zip(rows, params, strict=True):
        row["temperature"], row["top_p"], row["min_p"] = param.temperature, param.top_p, param.min_p
        row["top_k"], row["seed"] = max(param.top_k, 0), param.seed or 0
    return rows


def sampling_of(
    *params: SamplingParams, edits: Mapping[int, LogitsEdits] | None = None, **options: Int64Array
) -> SamplingBatch:
    """One row for each of `params`, at positions 0, 1, 2 ..."""
    return SamplingBatch(rows_of(*params), np.arange(len(params)), edits or {}, **options)


def one_each(num_rows: int) -> npt.NDArray[np.int32]:
    """`logits_start` of sequences that want one row each."""
    return np.arange(num_rows + 1, dtype=np.int32)


@dataclass(frozen=True)
class Mask:
    """A `TokenMask` of these tokens, which nobody may write to."""

    token_ids: tuple[int, ...]
    vocab_size: int

    def result(self) -> UInt32Array:
        words = np.zeros(-(-self.vocab_size // 32), np.uint32)
        for token_id in self.token_ids:
            words[token_id // 32] |= np.uint32(1 << token_id % 32)
        words.flags.writeable = False
        return words
