"""Edits of one row of logits: `LogitsEdits` and logits in, edited logits out, in numpy.

A row is seen whole, or as the logits of the few tokens that may come at all. Knows nothing about sampling.
"""

from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt

from nanovllm.batch import Float32Array, Int64Array, LogitsEdits, LogitsProcessor, Penalties, UInt32Array
from nanovllm.errors import BackendError

__all__ = ["allowed_ids", "edit_row", "is_empty"]


def is_empty(edits: LogitsEdits) -> bool:
    """Whether they leave every row as it is."""
    parts = (edits.allowed, edits.banned, edits.bias_ids, edits.penalties)
    return not edits.processors and all(part is None for part in parts)


def allowed_ids(edits: LogitsEdits, limit: float) -> Int64Array | None:
    """int64 (m,), ascending: the allowed tokens, where there are fewer than `limit`. None where there are more, or all,
    or where a logits processor wants the whole row.
    """
    if edits.allowed is None or edits.processors:
        return None
    words = edits.allowed.result()
    if int(np.bitwise_count(words).sum()) >= limit:
        return None
    used = np.flatnonzero(words)
    word, bit = np.nonzero(np.unpackbits(_bytes(words[used]).reshape(-1, 4), axis=1, bitorder="little"))
    return used[word] * 32 + bit


def edit_row(logits: Float32Array, edits: LogitsEdits, ids: Int64Array | None = None) -> Float32Array:
    """The edited logits of a row, float32 (vocab_size,); `logits` is written to.

    ids: where only these tokens' logits are given, float32 (len(ids),); they are the allowed ones.
    Raises `BackendError` where no token is left, or a logits processor fails.
    """
    if ids is None and edits.allowed is not None:
        bits = np.unpackbits(_bytes(edits.allowed.result()), count=len(logits), bitorder="little")
        logits[:] = np.where(bits.view(np.bool_), logits, -np.inf)
    if edits.banned is not None:
        at, _ = _places(edits.banned, ids)
        before = logits[at]
        logits[at] = -np.inf
        if logits.max(initial=-np.inf) == -np.inf:
            logits[at] = before
    with np.errstate(over="ignore"):  # an absurd logit or penalty: infinite, as it would be
        if edits.bias_ids is not None and edits.bias is not None:
            at, found = _places(edits.bias_ids, ids)
            logits[at] += edits.bias[found]
        if edits.penalties is not None:
            _penalize(logits, edits.penalties, ids)
    for processor in edits.processors:
        logits = _processed(processor, edits.output_token_ids, logits)
    if not (len(logits) and logits.max() > -np.inf):
        raise BackendError(
            f"no token is possible after the edits of a row: its largest logit is {logits.max(initial=-np.inf)}. Check "
            "the request's allowed_token_ids, structured_outputs and logits_processors, and the model where it is nan."
        )
    return logits


def _bytes(words: UInt32Array) -> npt.NDArray[np.uint8]:
    return words.astype("<u4", copy=False).view(np.uint8)


_ALL = slice(None)


def _places(wanted: Int64Array, ids: Int64Array | None) -> tuple[Int64Array, npt.NDArray[np.bool_] | slice]:
    """Where the wanted tokens stand in the row, and which of `wanted` stand there at all."""
    if ids is None:
        return wanted, _ALL
    if not len(ids):
        return wanted[:0], np.zeros(len(wanted), np.bool_)
    at = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    found = ids[at] == wanted
    return at[found], found


def _penalize(logits: Float32Array, penalties: Penalties, ids: Int64Array | None) -> None:
    at, found = _places(penalties.token_ids, ids)
    counts = penalties.counts[found]
    seen = logits[at]
    if penalties.repetition != 1:
        repetition = np.float32(penalties.repetition)
        seen = np.where(seen > 0, seen / repetition, seen * repetition)
    seen -= np.float32(penalties.frequency) * counts.astype(np.float32)
    seen -= np.float32(penalties.presence) * (counts > 0)
    logits[at] = seen


def _processed(processor: LogitsProcessor, output_token_ids: Seq[int], logits: Float32Array) -> Float32Array:
    try:
        processed = np.asarray(processor(list(output_token_ids), logits), np.float32)
    except Exception as error:
        raise BackendError(f"a logits processor of the request failed: {type(error).__name__}: {error}") from error
    if processed.shape != logits.shape:
        raise BackendError(
            f"a logits processor of the request returned an array of shape {processed.shape}; it must return logits "
            f"of the shape that it was given, {logits.shape}."
        )
    return processed
