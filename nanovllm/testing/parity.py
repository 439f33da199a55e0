"""When two implementations of one model agree: equal tokens up to near-ties, equal logits up to a tolerance.

Two correct implementations may part ways where the two best tokens are nearly level; from there on their texts differ
legitimately. So tokens are compared along the candidate's own text: the reference's logits are computed over the prompt
and those tokens ("teacher-forced"), which compares each position on equal terms. Knows no model and no engine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ParityReport", "ReferenceLogits", "assert_same_tokens"]

FloatArray = npt.NDArray[np.floating[Any]]
ReferenceLogits = Callable[[Sequence[int]], FloatArray] | FloatArray


@dataclass(frozen=True, slots=True)
class ParityReport:
    """What a comparison covered: tokens given, tokens compared before a near-tie parted them, largest difference of a
    logit (None where no logits were given)."""

    num_tokens: int
    num_compared: int
    max_difference: float | None


def assert_same_tokens(
    reference: ReferenceLogits,
    prompt: Sequence[int],
    tokens: Sequence[int],
    *,
    logits: FloatArray | None = None,
    near_tie: float = 1e-3,
    atol: float = 1e-3,
    min_share: float = 0.5,
) -> ParityReport:
    """Asserts that greedy `tokens` after `prompt` are what the reference gives.

    reference: a function from token ids to the logits after each, (len(ids), vocab_size); or what it gives for prompt +
    tokens; or only the rows that choose `tokens`, (len(tokens), vocab_size).
    logits: the candidate's own for each of `tokens`, (len(tokens), vocab_size); all are held within `atol` of the
    reference's. near_tie: where the candidate's token is at most this much below the best logit, the two may differ,
    and the comparison of tokens ends there. min_share: smallest part of `tokens` that must have been compared, so that
    a comparison that stops early does not pass for one that was made.

    Raises AssertionError, which says where and by how much; ValueError where the arguments do not fit together.
    """
    if not len(prompt) or not len(tokens):
        raise ValueError(f"prompt has {len(prompt)} and tokens {len(tokens)} ids; there is nothing to compare.")
    rows = _reference_rows(reference, prompt, tokens)
    assert np.isfinite(rows).all(), "the reference's logits are not finite; nothing can be compared with them"
    difference = None if logits is None else _compare_logits(rows, logits, atol)
    num_compared = _compare_tokens(rows, tokens, near_tie)
    share = num_compared / len(tokens)
    assert share >= min_share, (
        f"only {num_compared} of {len(tokens)} tokens were compared before a near-tie ({near_tie}) parted the two; "
        f"at least {min_share:.0%} is asked for. Take another prompt or a smaller near_tie."
    )
    return ParityReport(len(tokens), num_compared, difference)


def _reference_rows(reference: ReferenceLogits, prompt: Sequence[int], tokens: Sequence[int]) -> FloatArray:
    """The reference's logits for the choice of each of `tokens`, (len(tokens), vocab_size)."""
    array = reference([*prompt, *tokens]) if callable(reference) else reference
    total = len(prompt) + len(tokens)
    first = {total: len(prompt) - 1, len(tokens): 0}.get(len(array))
    if array.ndim != 2 or first is None:
        raise ValueError(
            f"reference logits have shape {array.shape}; needed are {total} rows (prompt and tokens) or the "
            f"last {len(tokens)} choices."
        )
    return array[first : first + len(tokens)]


def _compare_logits(rows: FloatArray, logits: FloatArray, atol: float) -> float:
    if logits.shape != rows.shape:
        raise ValueError(f"the candidate's logits have shape {logits.shape}; the reference's have {rows.shape}.")
    difference = np.abs(rows.astype(np.float64) - logits)
    worst = np.nan_to_num(difference, nan=np.inf).max()
    if not worst <= atol:
        i, token = np.unravel_index(np.nan_to_num(difference, nan=np.inf).argmax(), difference.shape)
        raise AssertionError(
            f"logits differ by {worst:.3g} (allowed: {atol:.3g}), most at generated position {i}, token {token}: "
            f"reference {rows[i, token]:.6g}, candidate {logits[i, token]:.6g}"
        )
    return float(worst)


def _compare_tokens(rows: FloatArray, tokens: Sequence[int], near_tie: float) -> int:
    """How many of `tokens` were compared and found equal: all of them, or those before a near-tie that parted."""
    for i, token in enumerate(tokens):
        best = int(rows[i].argmax())
        gap = float(rows[i, best] - rows[i, token])
        if token != best and gap > near_tie:
            raise AssertionError(
                f"token {i} of {len(tokens)} is {token}; the reference's is {best}, which it puts {gap:.3g} higher "
                f"(a near-tie is at most {near_tie:.3g})"
            )
        if token != best:
            return i
    return len(tokens)
