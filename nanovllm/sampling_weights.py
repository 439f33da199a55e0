"""Weights of one row of logits, and what the sampler does with them: the k-th largest, the nucleus, the drawn one.

In: logits and a temperature. Out: thresholds and an index, the same to the bit as from sorting all weights and summing
one by one, for a tenth of the time. For the nucleus, weights are counted in bins of their logarithms, and only the bin
in which the answer lies is sorted; where the rounding of a sum could change an answer, it is taken the long way.

    weight  1 ......... e**(-1/W) ......... e**(-2/W) ...       W = bins per unit
    bin     |-- 0 ------|-- 1 --------------|-- 2 ---
    mass    | 3.1       | 0.8               | 1.9            -> which bin top_p of the sum falls into

Knows nothing about seeds and requests.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

from nanovllm.batch import Float32Array, Float64Array, Int64Array

__all__ = ["Weights"]


_BINS_PER_UNIT = 25.6
_NUM_BINS = 1024  # the last one holds all weights below e**-40
_BLOCK = 1024  # weights that are summed together
_GROUP = 64  # weights of which the largest is looked at first
_ROUNDING = 1e-15  # bounds the error of adding one number, relative to the sum


class Weights:
    """exp((x - max(x)) / temperature) of logits float32 (n,), of which the largest is finite.

    scratch: float64 (3, n), written to, and kept as long as the weights are. Giving memory of this size back to the
    system and taking it anew for every row costs several times what is done with it.
    Weights may be dropped: `len` counts those that are left; indices remain those of the logits.
    """

    def __init__(self, logits: Float32Array, temperature: float, scratch: Float64Array) -> None:
        self._exponents: Float64Array = scratch[0]
        self._values: Float64Array = scratch[1]
        self._spare: Float64Array = scratch[2]
        np.subtract(logits, float(logits.max()), out=self._exponents, dtype=np.float64)
        with np.errstate(over="ignore"):  # a tiny temperature: -inf, whose weight is 0
            self._exponents /= temperature
        np.exp(self._exponents, out=self._values)
        self._indices: Int64Array | None = None  # None: none has been dropped
        self._rounding = _ROUNDING * len(logits)

    def __len__(self) -> int:
        return len(self._values)

    def keep_from(self, threshold: float) -> None:
        """Drops what is smaller; something is left."""
        kept = np.flatnonzero(self._values >= threshold)
        self._exponents = self._exponents[kept]
        self._values = self._values[kept]
        self._indices = kept if self._indices is None else self._indices[kept]

    def kth_largest(self, k: int) -> float:
        """The k-th largest weight, 1 <= k <= len."""
        values = self._values
        maxima = np.maximum.reduceat(values, np.arange(0, len(values), _GROUP))
        if k <= len(maxima):  # the k-th largest maximum is not above what is sought
            values = values[np.flatnonzero(values >= np.partition(maxima, -k)[-k])]
        return float(np.partition(values, -k)[-k])

    def nucleus_threshold(self, top_p: float) -> float:
        """The smallest weight of the smallest set of largest weights that holds at least top_p of their sum."""
        total = float(self._values.sum())
        target = top_p * total
        # Smaller ones than this are, all together, half of what the nucleus may leave out.
        near = np.flatnonzero(self._values >= 0.5 * (1 - top_p) * total / len(self))
        values, bins = self._values[near], self._bins(self._exponents[near])
        mass_up_to = np.cumsum(np.bincount(bins, values, _NUM_BINS))
        index = min(int(np.searchsorted(mass_up_to, target)), _NUM_BINS - 1)
        before = float(mass_up_to[index - 1]) if index else 0.0
        descending = np.sort(values[np.flatnonzero(bins == index)])[::-1]
        count = _first(descending, before, target, "left", self._rounding)
        if count is None:
            descending = np.sort(self._values)[::-1]
            running = np.cumsum(descending)
            count = min(int(np.searchsorted(running, top_p * running[-1])), len(running) - 1)
        return float(descending[count])

    def draw(self, u: float) -> int:
        """The first index whose running sum exceeds u times the sum of all, 0 <= u < 1."""
        drawn = self._draw(u)
        return drawn if self._indices is None else int(self._indices[drawn])

    def _draw(self, u: float) -> int:
        values = self._values
        starts = np.arange(0, len(values), _BLOCK)
        sum_up_to = np.cumsum(np.add.reduceat(values, starts))  # (num_blocks,)
        target = u * float(sum_up_to[-1])
        block = min(int(np.searchsorted(sum_up_to, target, side="right")), len(starts) - 1)
        before = float(sum_up_to[block - 1]) if block else 0.0
        start = block * _BLOCK
        index = _first(values[start : start + _BLOCK], before, target, "right", self._rounding)
        if index is not None:
            return start + index
        running = np.cumsum(values)
        return int(np.searchsorted(running, u * running[-1], side="right"))

    def _bins(self, exponents: Float64Array) -> npt.NDArray[np.int32]:
        scaled = self._spare[: len(exponents)]
        np.multiply(exponents, -_BINS_PER_UNIT, out=scaled)
        np.minimum(scaled, _NUM_BINS - 1, out=scaled)
        return scaled.astype(np.int32)


def _first(
    values: Float64Array, before: float, target: float, side: Literal["left", "right"], rounding: float
) -> int | None:
    """Index of the first of `values` whose running sum, from `before`, reaches ("left") or exceeds ("right") target.

    None where it is not among them, or where sums that are off by `rounding`, relatively, might say otherwise.
    """
    running = np.empty(len(values) + 1)
    running[0] = 0.0
    np.cumsum(values, out=running[1:])
    running += before
    low, high = np.searchsorted(running, [target * (1 - rounding), target * (1 + rounding)], side=side).tolist()
    return low - 1 if low == high and 0 < low <= len(values) else None
