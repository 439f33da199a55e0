"""The reference sampler: logits and sampling rows in, token ids out, in numpy.

A token is a function of (logits, parameters, seed, position) alone, so a request gives the same tokens whatever else is
in its batch. For one row, after its edits (`nanovllm.batch.LogitsEdits`):

1. temperature 0: the index of the largest logit (the lowest such index).
2. weights w = exp((x - max(x)) / temperature), float64.
3. min_p drops w < min_p (the largest w is 1); top_k drops what is below the k-th largest weight; top_p keeps the
   largest weights until they reach top_p of what is left. Equal weights stand or fall together.
4. u = uniform(seed, position); the token is the first id whose running sum of w, in id order, exceeds u * sum(w).

A compiled sampler that follows these steps with float64 sums in the same order gives the same tokens.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from nanovllm.batch import (
    Float32Array,
    Float64Array,
    Int32Array,
    Int64Array,
    LogitsEdits,
    RowLogprobs,
    SamplingBatch,
    StepOutput,
)
from nanovllm.logits_row import allowed_ids, edit_row, is_empty
from nanovllm.logprobs import row_logprobs
from nanovllm.sampling_weights import Weights

__all__ = ["Draw", "draw", "plain_rows", "sample", "sample_others", "uniform"]

SamplingRows = npt.NDArray[np.void]

Draw = Callable[[Float32Array, SamplingRows, Float64Array], Int64Array]
"""`draw`, or what gives the same."""

_FEW = 1 / 16  # share of the vocabulary up to which it is quicker to look at the allowed tokens alone
_NUM_COPIED = 8  # rows that are copied at once for their edits: all of them might be as large as the model


def draw(logits: Float32Array, rows: SamplingRows, uniforms: Float64Array) -> Int64Array:
    """Token ids, int64 (R,), for logits float32 (R, V), rows SAMPLING_ROW (R,) and uniforms float64 (R,) in [0, 1).

    No argument is written to. A random row without a finite largest logit gets the last id that holds the largest.
    """
    is_random = rows["temperature"] > 0
    token_ids = np.zeros(len(logits), np.int64) if is_random.all() else logits.argmax(axis=1)
    if is_random.any():
        scratch = np.empty((3, logits.shape[1]))
        for i in np.flatnonzero(is_random):
            token_ids[i] = _draw_row(logits[i], rows[i], float(uniforms[i]), scratch)
    return token_ids


def sample(logits: Float32Array, sampling: SamplingBatch, logits_start: Int32Array, draw: Draw = draw) -> StepOutput:
    """What a step of a plain model gives: tokens of the sampled rows, and the log-probabilities that are wanted.

    logits: float32 (num_logits, vocab_size), left unchanged. logits_start: as in `Batch`. Raises `BackendError` where a
    row's edits leave no token, or a logits processor fails.
    """
    token_ids = _token_ids(logits, sampling, draw)
    return StepOutput(_by_sequence(token_ids, sampling, logits_start), _logprobs(logits, token_ids, sampling))


def plain_rows(sampling: SamplingBatch) -> npt.NDArray[np.bool_]:
    """(num_logits,): the rows of which nothing is wanted but a token, drawn from the logits as they are. A runner may
    pick these itself, and give `sample_others` the logits of the rest alone."""
    is_plain = np.full(len(sampling.rows), True)
    if sampling.targets is not None:
        is_plain &= sampling.targets < 0
    if sampling.num_logprobs is not None:
        is_plain &= sampling.num_logprobs < 0
    is_plain[[i for i, edits in sampling.edits.items() if not is_empty(edits)]] = False
    return is_plain


def sample_others(
    token_ids: Int64Array,
    is_chosen: npt.NDArray[np.bool_],
    logits: Float32Array,
    sampling: SamplingBatch,
    logits_start: Int32Array,
    draw: Draw = draw,
) -> StepOutput:
    """As `sample`, where the tokens of some plain rows are known already.

    token_ids: int64 (num_logits,), where `is_chosen` (num_logits,) those tokens; the others are written to. logits:
    float32 (number of the other rows, vocab_size).
    """
    others = np.flatnonzero(~is_chosen)
    part = sampling.take(others)
    token_ids[others] = _token_ids(logits, part, draw)
    logprobs = _logprobs(logits, token_ids[others], part)
    if logprobs is not None:
        found = dict(zip(others.tolist(), logprobs, strict=True))
        logprobs = [found.get(i) for i in range(len(token_ids))]
    return StepOutput(_by_sequence(token_ids, sampling, logits_start), logprobs)


def _by_sequence(token_ids: Int64Array, sampling: SamplingBatch, logits_start: Int32Array) -> list[list[int]]:
    """The tokens of the sampled rows, a list for each sequence."""
    starts = logits_start
    if sampling.targets is not None:
        is_sampled = sampling.targets < 0
        token_ids = token_ids[is_sampled]
        starts = np.concatenate(([0], np.cumsum(is_sampled)))[logits_start]
    ids = token_ids.tolist()
    return [ids[a:b] for a, b in pairwise(starts.tolist())]


def _logprobs(logits: Float32Array, token_ids: Int64Array, sampling: SamplingBatch) -> list[RowLogprobs | None] | None:
    if sampling.num_logprobs is None:
        return None
    if sampling.targets is not None:
        token_ids = np.where(sampling.targets < 0, token_ids, sampling.targets)
    return row_logprobs(logits, token_ids, sampling.num_logprobs)


def uniform(seed: npt.NDArray[np.uint64], position: Int64Array) -> Float64Array:
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


def _draw_row(logits: Float32Array, row: np.void, u: float, scratch: Float64Array) -> int:
    largest = logits.max()
    if not np.isfinite(largest):
        return int(np.flatnonzero(~(logits < largest))[-1])
    weights = Weights(logits, float(row["temperature"]), scratch)
    min_p, top_k, top_p = float(row["min_p"]), int(row["top_k"]), float(row["top_p"])
    if min_p > 0:
        weights.keep_from(min_p)
    if 0 < top_k < len(weights):
        weights.keep_from(weights.kth_largest(top_k))
    if top_p < 1:
        weights.keep_from(weights.nucleus_threshold(top_p))
    return weights.draw(u)


def _token_ids(logits: Float32Array, sampling: SamplingBatch, draw: Draw) -> Int64Array:
    """int64 (num_logits,); what stands at a row that is not sampled has no meaning."""
    rows = sampling.rows
    num_rows = len(rows)
    uniforms = uniform(rows["seed"], sampling.positions) if rows["temperature"].any() else np.zeros(num_rows)
    is_sampled = np.full(num_rows, True) if sampling.targets is None else sampling.targets < 0
    edited = {i: edits for i, edits in sampling.edits.items() if is_sampled[i] and not is_empty(edits)}
    is_plain = is_sampled.copy()
    is_plain[list(edited)] = False
    token_ids = np.zeros(num_rows, np.int64)
    if is_plain.all():
        return draw(logits, rows, uniforms) if num_rows else token_ids
    if is_plain.any():
        plain_rows = rows.copy()
        plain_rows["temperature"][~is_plain] = 0  # to draw these in vain, greedily, costs less than copying the others
        token_ids = draw(logits, plain_rows, uniforms)
    _draw_edited(token_ids, logits, edited, rows, uniforms, draw)
    return token_ids


def _draw_edited(
    token_ids: Int64Array,
    logits: Float32Array,
    edited: Mapping[int, LogitsEdits],
    rows: SamplingRows,
    uniforms: Float64Array,
    draw: Draw,
) -> None:
    """Puts the tokens of the edited rows where they belong."""
    whole = []
    for i, edits in edited.items():
        ids = allowed_ids(edits, limit=_FEW * logits.shape[1])
        if ids is None:
            whole.append(i)
        else:  # what cannot come has the weight 0, which changes no sum
            few = edit_row(logits[i, ids], edits, ids)
            token_ids[i] = ids[draw(few[None], rows[i : i + 1], uniforms[i : i + 1])[0]]
    for start in range(0, len(whole), _NUM_COPIED):
        some = whole[start : start + _NUM_COPIED]
        copies = logits[some]
        for copy, i in zip(copies, some, strict=True):
            copy[:] = edit_row(copy, edited[i])
        token_ids[some] = draw(copies, rows[some], uniforms[some])
