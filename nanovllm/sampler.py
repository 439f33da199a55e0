"""The reference sampler: logits and sampling rows in, token ids out, in numpy.

A token is a function of (logits, parameters, seed, position) alone, so a request gives the same tokens whatever else is
in its batch. For one row:

1. temperature 0: the index of the largest logit (the lowest such index).
2. weights w = exp((x - max(x)) / temperature), float64.
3. min_p drops w < min_p (the largest w is 1); top_k drops what is below the k-th largest weight; top_p keeps the
   largest weights until they reach top_p of what is left. Equal weights stand or fall together.
4. u = uniform(seed, position); the token is the first id whose running sum of w, in id order, exceeds u * sum(w).

A compiled sampler that follows these steps with float64 sums in the same order gives the same tokens.
"""

import numpy as np
import numpy.typing as npt

from nanovllm.batch import SamplingBatch

__all__ = ["sample", "uniform"]

Float64Array = npt.NDArray[np.float64]


def sample(logits: npt.NDArray[np.float32], sampling: SamplingBatch) -> npt.NDArray[np.int64]:
    """Token ids, int64 (num_logits,), for logits float32 (num_logits, vocab_size), which are left unchanged."""
    token_ids = logits.argmax(axis=1) if len(logits) else np.zeros(0, np.int64)
    rows = sampling.rows
    random_rows = np.flatnonzero(rows["temperature"] > 0)
    if len(random_rows):
        u = uniform(rows["seed"][random_rows], sampling.positions[random_rows])
        for i, row in enumerate(random_rows):
            token_ids[row] = _sample_row(logits[row], rows[row], float(u[i]))
    return token_ids


def uniform(seed: npt.NDArray[np.uint64], position: npt.NDArray[np.int64]) -> Float64Array:
    """One float64 in [0, 1) per row, from a counter-based hash of (seed, position).

    Two rounds of the SplitMix64 finalizer (Steele, Lea and Flood 2014): the seed is mixed, the position is added as a
    Weyl sequence, and the sum is mixed again. The top 53 bits are the number.
    """
    mixed = _splitmix64(_splitmix64(seed.astype(np.uint64)) + position.astype(np.uint64) * _GOLDEN)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _splitmix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _sample_row(logits: npt.NDArray[np.float32], row: np.void, u: float) -> int:
    below_max = logits.astype(np.float64) - float(logits.max())
    with np.errstate(over="ignore"):  # a tiny temperature: -inf, whose weight is 0
        weights = np.exp(below_max / float(row["temperature"]))  # (vocab_size,), the largest is 1
    min_p, top_k, top_p = float(row["min_p"]), int(row["top_k"]), float(row["top_p"])
    if min_p > 0:
        weights[weights < min_p] = 0.0
    if 0 < top_k < len(weights):
        weights[weights < np.partition(weights, -top_k)[-top_k]] = 0.0
    if top_p < 1:
        weights[weights < _nucleus_threshold(weights, top_p)] = 0.0
    cumulative = np.cumsum(weights)
    token_id = int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))
    return min(token_id, int(np.flatnonzero(weights)[-1]))


def _nucleus_threshold(weights: Float64Array, top_p: float) -> float:
    """The smallest weight of the smallest set of largest weights that holds at least top_p of their sum."""
    descending = np.sort(weights)[::-1]
    cumulative = np.cumsum(descending)
    count = int(np.searchsorted(cumulative, top_p * cumulative[-1], side="left"))
    return float(descending[min(count, len(descending) - 1)])
