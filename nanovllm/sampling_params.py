"""SamplingParams: how one request is sampled and when it ends; checked when it is made.

Names, defaults and meanings are vLLM's. A parameter that is not here is not honoured, and naming it is an error.
"""

import sys
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from enum import Enum
from typing import Any

from nanovllm.errors import SamplingParamsError

__all__ = ["RequestOutputKind", "SamplingParams"]


_LARGEST = sys.float_info.max


class RequestOutputKind(Enum):
    """What a streamed output holds: all so far, what is new, or nothing before the end."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Parameters of one request.

    temperature: 0 is greedy. top_k: keep the k likeliest tokens; 0 or -1 = all. top_p: keep the likeliest tokens whose
    probabilities reach p. min_p: drop tokens less likely than min_p times the likeliest. seed: makes the request
    reproducible, whatever runs beside it; None = one derived from the engine's seed and the request's number.
    max_tokens: None = up to the model's length. stop: strings that end the text (None, one, or several; left out of it
    unless include_stop_str_in_output). stop_token_ids: token ids that end it, besides the model's end-of-sequence ids,
    which ignore_eos switches off. min_p, top_p and top_k act on the distribution after temperature, in that order:
    min_p, top_k, then top_p on what these two left.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = 16
    stop: str | Seq[str] | None = None
    stop_token_ids: Seq[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature, "at least 0 and finite", lambda v: 0.0 <= v <= _LARGEST)
        _check_number("top_p", self.top_p, "above 0 and at most 1", lambda v: 0.0 < v <= 1.0)
        _check_number("min_p", self.min_p, "from 0 to 1", lambda v: 0.0 <= v <= 1.0)
        _check_integer("top_k", self.top_k, "-1, 0 (both: off) or more", lambda v: -1 <= v < 2**31)
        if self.seed is not None:
            _check_integer("seed", self.seed, "from -2**63 to 2**64 - 1", lambda v: -(2**63) <= v < 2**64)
        if self.max_tokens is not None:
            _check_integer("max_tokens", self.max_tokens, "at least 1, or None for no limit", lambda v: v >= 1)
        _check_list("stop_token_ids", self.stop_token_ids, "a list of token ids")
        _check_list("stop", self.stop, "a string or a list of strings")
        for token_id in self.stop_token_ids or ():
            _check_integer("stop_token_ids", token_id, "token ids of at least 0", lambda v: v >= 0)
        for stop in self.stop_strings:
            if not isinstance(stop, str) or not stop:
                raise SamplingParamsError(f"stop holds {stop!r}; stop strings must be non-empty strings.")
        for name in ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise SamplingParamsError(f"{name} is {getattr(self, name)!r}; it must be True or False.")
        if not isinstance(self.output_kind, RequestOutputKind):
            raise SamplingParamsError(f"output_kind is {self.output_kind!r}; it must be a RequestOutputKind.")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


def _check_list(name: str, value: object, allowed: str) -> None:
    if value is not None and not isinstance(value, Seq):
        raise SamplingParamsError(f"{name} is {value!r}; it must be None, or {allowed}.")


def _check_number(name: str, value: object, allowed: str, holds: Callable[[Any], bool]) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not holds(value):
        raise SamplingParamsError(f"{name} is {value!r}; it must be a number, {allowed}.")


def _check_integer(name: str, value: object, allowed: str, holds: Callable[[Any], bool]) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not holds(value):
        raise SamplingParamsError(f"{name} is {value!r}; it must be an integer, {allowed}.")
