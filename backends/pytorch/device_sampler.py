"""The sampler of `nanovllm.sampler` on a device: logits in, token ids out, all rows at once.

`Sample` is what a device brings; CUDA's is `triton_kernels.draw_tokens`. `sample_tokens` serves devices that bring
none: the definition step for step in torch, without waiting for the device, but slow, for it sorts all weights. Both
give the definition's tokens up to rounding. Neither knows edits; rows that have some are sampled on the host.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nanovllm.batch import Float64Array, Int64Array
from nanovllm.sampler import uniform

__all__ = ["Sample", "sample_tokens", "sampling_rows"]

Sample = Callable[[Tensor, Tensor], Tensor]
"""Token ids, int64 (R,), of logits (R, V), which stay, and parameters as from `sampling_rows`, on the device."""


def sampling_rows(rows: npt.NDArray[np.void], positions: Int64Array) -> Float64Array:
    """float64 (5, R): temperature, top_k, top_p, min_p and uniform random numbers of SAMPLING_ROWs."""
    names = ("temperature", "top_k", "top_p", "min_p")
    return np.stack([*(rows[name].astype(np.float64) for name in names), uniform(rows["seed"], positions)])


def sample_tokens(logits: Tensor, parameters: Tensor) -> Tensor:
    """A `Sample` of any device. In float64 it holds the logits several times."""
    temperature, top_k, top_p, min_p, uniforms = parameters[:, :, None]  # (R, 1) each
    largest = logits.amax(-1, keepdim=True)
    weights = logits.double().sub_(largest.double())
    weights.div_(torch.where(temperature > 0, temperature, 1.0)).exp_()
    weights.masked_fill_(weights < min_p, 0)
    descending = weights.sort(-1, descending=True).values
    threshold = _kth(descending, top_k)
    weights.masked_fill_(weights < threshold, 0)
    descending.masked_fill_(descending < threshold, 0)
    weights.masked_fill_(weights < _nucleus_threshold(descending, top_p), 0)
    sums = weights.cumsum_(-1)
    drawn = torch.searchsorted(sums, uniforms * sums[:, -1:], right=True).clamp_(max=logits.shape[1] - 1)
    random = torch.where(largest.isfinite(), drawn, _last_largest(logits, largest))
    return torch.where(temperature > 0, random, logits.argmax(-1, keepdim=True)).squeeze(1)


def _kth(descending: Tensor, k: Tensor) -> Tensor:
    """The k-th weight of each row, (R, 1); 0, which keeps all, where k is 0 or more than the row has."""
    num_weights = descending.shape[1]
    threshold = descending.gather(1, (k.long() - 1).clamp_(0, num_weights - 1))
    return torch.where((k > 0) & (k <= num_weights), threshold, 0.0)


def _nucleus_threshold(descending: Tensor, top_p: Tensor) -> Tensor:
    """The smallest weight of each row's nucleus, (R, 1); 0 where top_p is 1."""
    sums = descending.cumsum(-1)
    count = (sums < top_p * sums[:, -1:]).sum(-1, keepdim=True)  # of weights before the one that reaches the target
    threshold = descending.gather(1, count.clamp_(max=descending.shape[1] - 1))
    return torch.where(top_p < 1, threshold, 0.0)


def _last_largest(logits: Tensor, largest: Tensor) -> Tensor:
    """The last id that holds a row's largest logit, (R, 1); with a NaN among them, the last id."""
    holds = ~(logits < largest)
    return logits.shape[1] - 1 - holds.flip(-1).to(torch.uint8).argmax(-1, keepdim=True)
