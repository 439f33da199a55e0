"""SamplingParams: how one request is sampled and when it ends; checked when it is made.

Names, defaults and meanings are vLLM's. A parameter that is not here is not honoured, and naming it is an error.
"""

import sys
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, fields
from difflib import get_close_matches
from enum import Enum
from typing import Any

from nanovllm.batch import LogitsProcessor
from nanovllm.errors import SamplingParamsError
from nanovllm.structured_outputs import StructuredOutputsParams

__all__ = ["RequestOutputKind", "SamplingParams"]


_LARGEST = sys.float_info.max
_MAX_N = 16384  # vLLM's default
_SWITCHES = ("include_stop_str_in_output", "ignore_eos", "detokenize", "skip_special_tokens")


class RequestOutputKind(Enum):
    """What a streamed output holds: all so far, what is new, or nothing before the end."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Parameters of one request.

    n: continuations of the prompt; with a seed, the i-th has seed + i. temperature: 0 is greedy, and then n is 1.
    top_k: keep the k likeliest tokens; 0 or -1 = all. top_p: keep the likeliest tokens whose probabilities reach p.
    min_p: drop tokens less likely than min_p times the likeliest. They act on the distribution after temperature:
    min_p, top_k, then top_p on what these two left. seed: makes the request reproducible, whatever runs beside it;
    None = one derived from the engine's seed and the request's number.

    repetition_penalty: logits of tokens that the prompt or the output holds are divided by it where they are positive,
    else multiplied; 1 = off. frequency_penalty, presence_penalty: subtracted from the logits of tokens of the output,
    for each time that they occur, and once. logit_bias: by token id, clamped to -100 .. 100 and added to the logit.
    allowed_token_ids: all others are impossible. bad_words: never completed by the output; text, tokenized with and
    without a space before it. logits_processors: functions (output token ids, logits) -> logits, called in this order
    after everything above has been applied; see `nanovllm.batch.LogitsProcessor`.
    structured_outputs: the form of the output.

    max_tokens: None = up to the model's length. min_tokens: the request cannot end before it has so many. stop: strings
    that end the text (None, one, or several; left out of it unless include_stop_str_in_output). stop_token_ids: token
    ids that end it, besides the model's end-of-sequence ids, which ignore_eos switches off.

    logprobs, prompt_logprobs: log-probabilities of each token of the output or of the prompt, and of as many of the
    likeliest; None = none at all, 0 = of the token alone, -1 = of the whole vocabulary.
    detokenize: False = token ids only, the text stays empty; not with stop strings. skip_special_tokens: leaves them
    out of the text. spaces_between_special_tokens: only True, as the tokenizer writes them.

    Raises `SamplingParamsError`. What depends on the model, such as the largest token id, is checked at submission.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | Seq[str] | None = None
    stop_token_ids: Seq[int] | None = None
    bad_words: Seq[str] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    structured_outputs: StructuredOutputsParams | None = None
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Seq[int] | None = None
    logits_processors: Seq[LogitsProcessor] | None = None

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "SamplingParams":
        """As the constructor, from plain values such as JSON gives them: `structured_outputs` may be a mapping, and
        the token ids of `logit_bias` strings. An unknown key raises `SamplingParamsError` with the nearest known one.
        """
        options = dict(options)
        names = {field.name for field in fields(cls)}
        for key in options:
            if key not in names:
                raise SamplingParamsError(_unknown(key, names, "sampling parameter"))
        bias = options.get("logit_bias")
        if isinstance(bias, Mapping):
            options["logit_bias"] = {int(k) if isinstance(k, str) and k.isdecimal() else k: v for k, v in bias.items()}
        form = options.get("structured_outputs")
        if isinstance(form, Mapping):
            form_names = {field.name for field in fields(StructuredOutputsParams)}
            for key in form:
                if key not in form_names:
                    raise SamplingParamsError(_unknown(key, form_names, "option of structured_outputs"))
            options["structured_outputs"] = StructuredOutputsParams(**form)
        return cls(**options)

    def __post_init__(self) -> None:
        self._check_distribution()
        self._check_edits()
        self._check_end()
        self._check_output()

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def _check_distribution(self) -> None:
        _check_integer("n", self.n, f"from 1 to {_MAX_N}", lambda v: 1 <= v <= _MAX_N)
        _check_number("temperature", self.temperature, "at least 0 and finite", lambda v: 0.0 <= v <= _LARGEST)
        if self.n > 1 and self.temperature == 0:
            raise SamplingParamsError(
                f"n is {self.n} and temperature 0, which gives the same output {self.n} times; n must be 1 then. "
                "Raise temperature, or leave n out."
            )
        _check_number("top_p", self.top_p, "above 0 and at most 1", lambda v: 0.0 < v <= 1.0)
        _check_number("min_p", self.min_p, "from 0 to 1", lambda v: 0.0 <= v <= 1.0)
        _check_integer("top_k", self.top_k, "-1, 0 (both: off) or more", lambda v: -1 <= v < 2**31)
        if self.seed is not None:
            _check_integer("seed", self.seed, "from -2**63 to 2**64 - 1", lambda v: -(2**63) <= v < 2**64)

    def _check_edits(self) -> None:
        for name in ("presence_penalty", "frequency_penalty"):
            _check_number(name, getattr(self, name), "from -2 to 2", lambda v: -2.0 <= v <= 2.0)
        _check_number("repetition_penalty", self.repetition_penalty, "above 0 and finite", lambda v: 0 < v <= _LARGEST)
        if self.logit_bias is not None and not isinstance(self.logit_bias, Mapping):
            raise SamplingParamsError(f"logit_bias is {self.logit_bias!r}; it must map token ids to numbers, or None.")
        for token_id, bias in (self.logit_bias or {}).items():
            _check_token_id("logit_bias", token_id)
            _check_number(f"logit_bias of token {token_id}", bias, "not NaN", lambda v: v == v)
        _check_list("allowed_token_ids", self.allowed_token_ids, "a list of token ids")
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise SamplingParamsError("allowed_token_ids is empty; name at least one token id, or leave it out.")
        for token_id in self.allowed_token_ids or ():
            _check_token_id("allowed_token_ids", token_id)
        _check_texts("bad_words", self.bad_words)
        _check_list("logits_processors", self.logits_processors, "a list of functions (token ids, logits) -> logits")
        for processor in self.logits_processors or ():
            if not callable(processor):
                raise SamplingParamsError(f"logits_processors holds {processor!r}; each must be a function.")
        form = self.structured_outputs
        if form is not None and not isinstance(form, StructuredOutputsParams):
            raise SamplingParamsError(f"structured_outputs is {form!r}; it must be a StructuredOutputsParams or None.")
        if form is not None and self.ignore_eos:
            raise SamplingParamsError(
                "ignore_eos is set beside structured_outputs; an output that has its form can only end. Leave it out."
            )

    def _check_end(self) -> None:
        if self.max_tokens is not None:
            _check_integer("max_tokens", self.max_tokens, "at least 1, or None for no limit", lambda v: v >= 1)
        _check_integer("min_tokens", self.min_tokens, "at least 0", lambda v: v >= 0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise SamplingParamsError(
                f"min_tokens is {self.min_tokens} and max_tokens {self.max_tokens}; min_tokens must not be the larger."
            )
        _check_list("stop_token_ids", self.stop_token_ids, "a list of token ids")
        for token_id in self.stop_token_ids or ():
            _check_token_id("stop_token_ids", token_id)
        if not isinstance(self.stop, str):
            _check_list("stop", self.stop, "a string or a list of strings")
        _check_texts("stop", self.stop_strings)
        if self.stop_strings and self.detokenize is False:
            raise SamplingParamsError(
                f"stop is {self.stop!r} and detokenize False; stop strings are looked for in the text. "
                "Leave out one of the two, or use stop_token_ids."
            )

    def _check_output(self) -> None:
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _check_integer(
                    name, getattr(self, name), "at least 0, or -1 for the whole vocabulary", lambda v: v >= -1
                )
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise SamplingParamsError(f"{name} is {getattr(self, name)!r}; it must be True or False.")
        if self.spaces_between_special_tokens is not True:
            raise SamplingParamsError(
                f"spaces_between_special_tokens is {self.spaces_between_special_tokens!r}; only True is honoured: the "
                "tokenizer decides. Leave it out."
            )
        if not isinstance(self.output_kind, RequestOutputKind):
            raise SamplingParamsError(f"output_kind is {self.output_kind!r}; it must be a RequestOutputKind.")


def _unknown(key: object, names: set[str], what: str) -> str:
    near = get_close_matches(str(key), sorted(names), n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(sorted(names))}."
    return f"unknown {what} {key!r}. {hint}"


def _check_list(name: str, value: object, allowed: str) -> None:
    if value is not None and (isinstance(value, str) or not isinstance(value, Seq)):
        raise SamplingParamsError(f"{name} is {value!r}; it must be None, or {allowed}.")


def _check_texts(name: str, values: Seq[object] | None) -> None:
    _check_list(name, values, "a list of strings")
    for text in values or ():
        if not isinstance(text, str) or not text:
            raise SamplingParamsError(f"{name} holds {text!r}; it must hold non-empty strings.")


def _check_token_id(name: str, value: object) -> None:
    _check_integer(name, value, "token ids of at least 0", lambda v: v >= 0)


def _check_number(name: str, value: object, allowed: str, holds: Callable[[Any], bool]) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not holds(value):
        raise SamplingParamsError(f"{name} is {value!r}; it must be a number, {allowed}.")


def _check_integer(name: str, value: object, allowed: str, holds: Callable[[Any], bool]) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not holds(value):
        raise SamplingParamsError(f"{name} is {value!r}; it must be an integer, {allowed}.")
