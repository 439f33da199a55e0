"""Log-probabilities of rows of logits, in numpy: logits in, `RowLogprobs` out.

They are of the model's own distribution; knows nothing about edits, temperature and sampling.
"""

import numpy as np

from nanovllm.batch import Float32Array, Int32Array, Int64Array, RowLogprobs

__all__ = ["row_logprobs"]


_GROUP = 64  # logits of which the largest is looked at first


def row_logprobs(logits: Float32Array, own: Int64Array, num_logprobs: Int32Array) -> list[RowLogprobs | None]:
    """One entry for each row of logits, float32 (R, V); None where `num_logprobs` (R,) is -1.

    own: int64 (R,), each row's own token. A row's logits are not all minus infinity.
    """
    return [
        None if count < 0 else _row_logprobs(logits[i], token_id, min(count, logits.shape[1]))
        for i, (token_id, count) in enumerate(zip(own.tolist(), num_logprobs.tolist(), strict=True))
    ]


def _row_logprobs(logits: Float32Array, own: int, count: int) -> RowLogprobs:
    largest = float(logits.max())
    log_sum = np.log(np.exp(logits.astype(np.float64) - largest).sum())
    ids = np.concatenate(([own], _likeliest(logits, count)))
    rank = 1 + np.count_nonzero(logits > logits[own]) + np.count_nonzero(logits[:own] == logits[own])
    return RowLogprobs(ids, (logits[ids].astype(np.float64) - largest - log_sum).astype(np.float32), int(rank))


def _likeliest(logits: Float32Array, count: int) -> Int64Array:
    """The ids of the `count` largest logits, descending; of equal ones the lower first."""
    if count == 0:
        return np.zeros(0, np.int64)
    ids = np.arange(len(logits))
    maxima = np.maximum.reduceat(logits, ids[::_GROUP])
    if count <= len(maxima):  # the last one sought is not below the maximum of this rank
        ids = np.flatnonzero(logits >= np.partition(maxima, -count)[-count])
    return ids[np.argsort(-logits[ids], kind="stable")[:count]]
