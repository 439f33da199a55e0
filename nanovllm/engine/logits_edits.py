"""SequenceEdits: what happens to the logits of one sequence's rows, as the sequence grows.

In: the request's parameters, and tokens as they come. Out: `LogitsEdits` that hand out what is kept here instead of
building it anew for every step. Knows nothing about logits themselves; the sampler applies the edits.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nanovllm.batch import Int32Array, Int64Array, LogitsEdits, Penalties, TokenMask, UInt32Array
from nanovllm.errors import SamplingParamsError
from nanovllm.plugins.interfaces import Tokenizer
from nanovllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from nanovllm.engine.grammar import GrammarState

__all__ = ["SequenceEdits", "bad_word_token_ids", "needs_edits"]

_LARGEST_BIAS = 100.0  # vLLM's, and OpenAI's
_FLOAT32 = np.finfo(np.float32)


def needs_edits(params: SamplingParams) -> bool:
    """Whether anything may happen to the logits before they are sampled."""
    return bool(
        _has_penalties(params)
        or params.logit_bias
        or params.allowed_token_ids is not None
        or params.bad_words
        or params.min_tokens
        or params.logits_processors
        or params.structured_outputs is not None
    )


def bad_word_token_ids(words: Seq[str], tokenizer: Tokenizer) -> list[list[int]]:
    """How each of `words` may be written in tokens: at the start of a text and, where the space only changes the first
    token, after a space. The rule is vLLM's (`SamplingParams.update_from_tokenizer`).

    Raises `SamplingParamsError` for a word that has no tokens.
    """
    found: list[list[int]] = []
    for word in words:
        plain, spaced = (
            list(tokenizer.encode(prefix + word.lstrip(), add_special_tokens=False)) for prefix in ("", " ")
        )
        if not plain:
            raise SamplingParamsError(f"bad_words holds {word!r}, which has no tokens; leave it out.")
        found.append(plain)
        if len(spaced) == len(plain) and spaced[0] != plain[0]:
            found.append(spaced)
    return found


class SequenceEdits:
    """The edits of one sequence, which has no output yet; each of n siblings has its own.

    stop_token_ids: banned until the output has `min_tokens`. bad_words: token ids of each; the last one is banned where
    those before it are the end of the output (not of the prompt, as in vLLM). vocab_size: width of a row of logits;
    stop ids and bad words beyond it cannot come anyway. grammar: is told of every token.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: Seq[int],
        *,
        stop_token_ids: frozenset[int],
        bad_words: Seq[Seq[int]] = (),
        vocab_size: int,
        grammar: "GrammarState | None" = None,
    ) -> None:
        self._output: list[int] = []
        self._min_tokens = params.min_tokens
        self._bad_words = _BadWords([word for word in bad_words if word[-1] < vocab_size])
        self._banned_early = sorted({*self._bad_words.always, *(i for i in stop_token_ids if i < vocab_size)})
        self._bias_ids, self._bias = None, None
        if params.logit_bias:
            self._bias_ids = np.array(list(params.logit_bias), np.int64)
            limited = [max(-_LARGEST_BIAS, min(bias, _LARGEST_BIAS)) for bias in params.logit_bias.values()]
            self._bias = np.array(limited, np.float32)
        self._allowed = None if params.allowed_token_ids is None else _mask_of(params.allowed_token_ids, vocab_size)
        self._seen = _SeenTokens(params, prompt_token_ids) if _has_penalties(params) else None
        self._processors = tuple(params.logits_processors or ())
        self._grammar = grammar

    @property
    def follow_output(self) -> bool:
        """Whether the edits of the next rows depend on tokens that are sampled from now on; else they stay the same."""
        return bool(
            self._grammar is not None
            or self._seen is not None
            or self._processors
            or self._bad_words.has_long
            or len(self._output) < self._min_tokens
        )

    def append(self, token_id: int) -> None:
        """The sequence has this token now. Raises `SamplingParamsError` where its grammar does not allow it."""
        self._output.append(token_id)
        if self._seen is not None:
            self._seen.append(token_id)
        if self._grammar is not None:
            self._grammar.accept(token_id)

    def rows(self, drafts: Seq[int] = ()) -> list[LogitsEdits]:
        """For the next token, and for the one after each draft: len(drafts) + 1. Valid until the next call of this
        object: their arrays are those that grow here.
        """
        masks = self._masks(drafts)
        penalties = [None] * len(masks) if self._seen is None else self._seen.penalties(drafts)
        return [
            LogitsEdits(
                allowed=masks[i],
                banned=self._banned(drafts[:i]),
                bias_ids=self._bias_ids,
                bias=self._bias,
                penalties=penalties[i],
                processors=self._processors,
                output_token_ids=[*self._output, *drafts[:i]] if self._processors else (),
            )
            for i in range(len(masks))
        ]

    def _masks(self, drafts: Seq[int]) -> Seq[TokenMask | None]:
        if self._grammar is None:
            return [self._allowed] * (len(drafts) + 1)
        masks = self._grammar.masks(drafts)
        return masks if self._allowed is None else [_Both(mask, self._allowed) for mask in masks]

    def _banned(self, drafts: Seq[int]) -> Int64Array | None:
        too_early = len(self._output) + len(drafts) < self._min_tokens
        banned = self._banned_early if too_early else self._bad_words.always
        completing = self._bad_words.completing([*self._output[-self._bad_words.longest :], *drafts])
        return np.array([*banned, *completing], np.int64) if banned or completing else None


def _has_penalties(params: SamplingParams) -> bool:
    return bool(params.repetition_penalty != 1 or params.frequency_penalty or params.presence_penalty)


class _BadWords:
    """Bad words by what stands before their last token. longest: tokens that may do so; always: words of one token."""

    def __init__(self, words: Seq[Seq[int]]) -> None:
        self._ends: dict[tuple[int, ...], list[int]] = {}
        for word in words:
            self._ends.setdefault(tuple(word[:-1]), []).append(word[-1])
        self.always = self._ends.pop((), [])
        self._lengths = sorted({len(start) for start in self._ends})
        self.longest = max(self._lengths, default=1)

    @property
    def has_long(self) -> bool:
        """Whether any word has more than one token."""
        return bool(self._ends)

    def completing(self, token_ids: list[int]) -> list[int]:
        """Tokens that would complete a word after these."""
        return [end for length in self._lengths for end in self._ends.get(tuple(token_ids[-length:]), ())]


class _SeenTokens:
    """The distinct tokens of a sequence and how often each stands in its output, in arrays that grow by doubling.

    Those of the prompt count for the repetition penalty alone.
    """

    def __init__(self, params: SamplingParams, prompt_token_ids: Seq[int]) -> None:
        repetition = min(max(params.repetition_penalty, float(_FLOAT32.tiny)), float(_FLOAT32.max))  # no inf * 0
        self._factors = (repetition, params.frequency_penalty, params.presence_penalty)
        distinct = dict.fromkeys(prompt_token_ids) if repetition != 1 else {}
        self._index = {token_id: i for i, token_id in enumerate(distinct)}
        self._ids: Int64Array = np.fromiter(self._index, np.int64, len(self._index))
        self._counts: Int32Array = np.zeros(len(self._index), np.int32)

    def append(self, token_id: int) -> None:
        at = self._index.setdefault(token_id, len(self._index))
        if at == len(self._ids):
            room = max(64, at)
            self._ids = np.concatenate((self._ids, np.zeros(room, np.int64)))
            self._counts = np.concatenate((self._counts, np.zeros(room, np.int32)))
        self._ids[at] = token_id
        self._counts[at] += 1

    def penalties(self, drafts: Seq[int]) -> list[Penalties | None]:
        """For the next token and for the one after each draft; None where no token has been seen."""
        size = len(self._index)
        ids, counts = self._ids[:size], self._counts[:size]
        found: list[Penalties | None] = [Penalties(ids, counts, *self._factors) if size else None]
        if drafts:
            new = [token_id for token_id in dict.fromkeys(drafts) if token_id not in self._index]
            at_of_new = {token_id: size + i for i, token_id in enumerate(new)}
            ids = np.concatenate((ids, np.array(new, np.int64)))  # in the order in which the drafts bring them
            counts = np.concatenate((counts, np.zeros(len(new), np.int32)))
        for draft in drafts:
            at = self._index[draft] if draft in self._index else at_of_new[draft]
            size = max(size, at + 1)
            counts = counts.copy()
            counts[at] += 1
            found.append(Penalties(ids[:size], counts[:size], *self._factors))
        return found


@dataclass(frozen=True, slots=True)
class _Mask:
    """A mask that is known."""

    words: UInt32Array

    def result(self) -> UInt32Array:
        return self.words


@dataclass(frozen=True, slots=True)
class _Both:
    """What two masks allow."""

    one: TokenMask
    other: TokenMask

    def result(self) -> UInt32Array:
        return self.one.result() & self.other.result()


def _mask_of(token_ids: Seq[int], vocab_size: int) -> _Mask:
    ids = np.array(token_ids, np.int64)
    words = np.zeros(-(-vocab_size // 32), np.uint32)
    np.bitwise_or.at(words, ids // 32, np.uint32(1) << (ids % 32).astype(np.uint32))
    return _Mask(words)
