"""The sampler of `nanovllm.sampler` on a device: logits in, token ids out, all rows at once, in torch.

The definition is that module's, step for step, in float64: the same tokens up to the rounding of sums, which a device
may add in another order. Nothing is waited for: what is to be done follows from the rows' parameters, which the host
knows. Knows no edits; rows that have some are sampled on the host.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nanovllm.batch import Float64Array, Int64Array
from nanovllm.sampler import uniform

__all__ = ["Sampling", "sample_tokens", "sampling_rows"]

_ROWS_AT_ONCE = 64  # in float64 a row of 150,000 logits takes 1.2 MB, several times


@dataclass(frozen=True, slots=True)
class Sampling:
    """What some rows need. is_random: a row is sampled, not greedy. max_top_k: the largest top_k, 0 where no row has
    one. has_min_p, has_top_p: a row has one. has_only_small_nuclei: every row with top_p has top_k too."""

    is_random: bool = False
    has_min_p: bool = False
    max_top_k: int = 0
    has_top_p: bool = False
    has_only_small_nuclei: bool = False

    @classmethod
    def of(cls, rows: npt.NDArray[np.void]) -> "Sampling":
        """rows: SAMPLING_ROW (R,)."""
        if not rows["temperature"].any():
            return cls()
        top_k, has_top_p = rows["top_k"], rows["top_p"] < 1
        return cls(
            is_random=True,
            has_min_p=bool((rows["min_p"] > 0).any()),
            max_top_k=int(top_k.max()),
            has_top_p=bool(has_top_p.any()),
            has_only_small_nuclei=bool((top_k[has_top_p] > 0).all()),
        )


def sampling_rows(rows: npt.NDArray[np.void], positions: Int64Array) -> Float64Array:
    """float64 (5, R): temperature, top_k, top_p, min_p and uniform random numbers of SAMPLING_ROWs."""
    names = ("temperature", "top_k", "top_p", "min_p")
    return np.stack([*(rows[name].astype(np.float64) for name in names), uniform(rows["seed"], positions)])


def sample_tokens(logits: Tensor, parameters: Tensor, sampling: Sampling) -> Tensor:
    """Token ids, int64 (R,), of logits (R, V), which stay. parameters: as from `sampling_rows`, on the device."""
    greedy = logits.argmax(-1)
    if not sampling.is_random or not len(logits):
        return greedy
    starts = range(0, len(logits), _ROWS_AT_ONCE)
    parts = [_draw(logits[i : i + _ROWS_AT_ONCE], parameters[:, i : i + _ROWS_AT_ONCE], sampling) for i in starts]
    return torch.where(parameters[0] > 0, torch.cat(parts), greedy)


def _draw(logits: Tensor, parameters: Tensor, sampling: Sampling) -> Tensor:
    """Drawn token ids, int64 (R,); what stands in greedy rows has no meaning."""
    temperature, top_k, top_p, min_p, uniforms = parameters.unbind(0)
    largest = logits.amax(-1, keepdim=True)
    weights = logits.double().sub_(largest.double())
    weights.div_(torch.where(temperature > 0, temperature, 1.0)[:, None]).exp_()
    if sampling.has_min_p:
        weights.masked_fill_(weights < min_p[:, None], 0)
    top = weights[:, :0]  # the largest weights, descending
    if sampling.max_top_k:
        top = weights.topk(min(sampling.max_top_k, weights.shape[1])).values
        threshold = _kth(top, top_k)
        weights.masked_fill_(weights < threshold, 0)
        top = torch.where(top < threshold, 0.0, top)
    if sampling.has_top_p:
        if not sampling.has_only_small_nuclei:
            top = weights.sort(-1, descending=True).values
        weights.masked_fill_(weights < _nucleus_threshold(weights, top, top_p), 0)
    sums = weights.cumsum_(-1)
    targets = uniforms[:, None] * sums[:, -1:]
    drawn = torch.searchsorted(sums, targets, right=True).clamp_(max=logits.shape[1] - 1).squeeze(1)
    return torch.where(largest.squeeze(1).isfinite(), drawn, _last_largest(logits, largest))


def _kth(top: Tensor, k: Tensor) -> Tensor:
    """The k-th weight of each row, (R, 1); 0, which keeps all, where k is 0 or more than the row has."""
    at = (k.long() - 1).clamp_(0, top.shape[1] - 1)
    return torch.where(((k > 0) & (k <= top.shape[1]))[:, None], top.gather(1, at[:, None]), 0.0)


def _nucleus_threshold(weights: Tensor, top: Tensor, top_p: Tensor) -> Tensor:
    """The smallest weight of each row's nucleus, (R, 1); 0 where top_p is 1.

    top: (R, n), the largest weights, descending; those that are not here but count are as large as the smallest here.
    """
    targets = top_p[:, None] * weights.sum(-1, keepdim=True)
    count = (top.cumsum(-1) < targets).sum(-1, keepdim=True)  # of weights before the one that reaches the target
    last = (top > 0).sum(-1, keepdim=True) - 1
    threshold = top.gather(1, torch.minimum(count, last.clamp_(min=0)))
    return torch.where(top_p[:, None] < 1, threshold, 0.0)


def _last_largest(logits: Tensor, largest: Tensor) -> Tensor:
    """The last id that holds a row's largest logit; with a NaN among them, the last id."""
    holds = ~(logits < largest)
    return logits.shape[1] - 1 - holds.flip(-1).to(torch.uint8).argmax(-1)
