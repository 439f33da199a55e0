"""Text from tokens, as they come: never half a character, never a piece of a stop string.

In: token ids one step at a time. Out: text that can be shown and will not change. `Decoder`s turn ids into text;
`StopStrings` holds text back; `Detokenizer` joins them for one sequence.
"""

import codecs
from collections.abc import Sequence as Seq
from typing import Protocol

from nanovllm.plugins.interfaces import Tokenizer
from nanovllm.sampling_params import SamplingParams

__all__ = ["Detokenizer", "DetokenizerFactory", "StopStrings"]


class _Decoder(Protocol):
    """Yields the text that one more token completes, and at the end what is left."""

    def feed(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class _ByteDecoder:
    """For byte-level tokenizers: text is the tokens' bytes as UTF-8."""

    def __init__(self, token_bytes: Seq[bytes]) -> None:
        self._token_bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token_id: int) -> str:
        return self._utf8.decode(self._token_bytes[token_id]) if token_id < len(self._token_bytes) else ""

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class _ContextDecoder:
    """For any other tokenizer: decodes a short window twice, with and without the new tokens.

    The window starts where text was last known to be whole, so a decoder that strips a leading space or joins bytes
    sees the same surroundings both times (the method of Hugging Face's text-generation-inference).
    """

    def __init__(self, tokenizer: Tokenizer, context: Seq[int], *, skip_special_tokens: bool) -> None:
        self._decode = tokenizer.decode
        self._skip = skip_special_tokens
        self._token_ids = list(context)
        self._num_known = len(self._token_ids)  # tokens whose text has been given out

    def feed(self, token_id: int) -> str:
        self._token_ids.append(token_id)
        return self._advance(final=False)

    def flush(self) -> str:
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> str:
        known = self._decode(self._token_ids[: self._num_known], skip_special_tokens=self._skip)
        whole = self._decode(self._token_ids, skip_special_tokens=self._skip)
        if len(whole) <= len(known) or (whole.endswith("\ufffd") and not final):
            return ""
        self._token_ids = self._token_ids[self._num_known :]
        self._num_known = len(self._token_ids)
        return whole[len(known) :]


class StopStrings:
    """Watches a text for stop strings, holding back an end that might be the start of one."""

    def __init__(self, stops: Seq[str], *, include: bool) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """Text that is safe to show, and the stop string that has been completed, if any.

        The one that is complete first wins, the longest where several are, so the cuts between tokens do not matter.
        """
        held = self._held + text
        found = [(held.find(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in held]
        if found:
            end, _, stop = min(found)
            self._held = ""
            return held[: end if self._include else end - len(stop)], stop
        num_held = max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - num_held :]
        return held[: len(held) - num_held], None

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


class Detokenizer:
    """The growing text of one sequence.

    `text` is what may be shown. After `feed` returned a stop string, or after `finish`, it does not grow any more.
    """

    __slots__ = ("_decoder", "_num_taken", "_stops", "text")

    def __init__(self, decoder: _Decoder, stops: StopStrings | None) -> None:
        self._decoder = decoder
        self._stops = stops
        self._num_taken = 0
        self.text = ""

    def feed(self, token_id: int, *, watched: bool = True) -> str | None:
        """Adds a token; returns the stop string that it completed, if any. The text of a token that is not watched is
        no part of a stop string; no such token comes after one that is watched."""
        text = self._decoder.feed(token_id)
        if not watched:
            self.text += text
            return None
        return self._show(text)

    def finish(self) -> str | None:
        """Ends the text: half characters become U+FFFD, held-back text is shown. May complete a stop string."""
        stop = self._show(self._decoder.flush())
        if stop is None and self._stops is not None:
            self.text += self._stops.flush()
        return stop

    def take(self) -> str:
        """The text since the last call."""
        new = self.text[self._num_taken :]
        self._num_taken = len(self.text)
        return new

    def _show(self, text: str) -> str | None:
        if self._stops is None:
            self.text += text
            return None
        shown, stop = self._stops.feed(text)
        self.text += shown
        return stop


class DetokenizerFactory:
    """Makes a `Detokenizer` for each sequence of one tokenizer, sharing what can be shared."""

    _CONTEXT = 6  # prompt tokens that a context decoder looks back on

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes = tokenizer.token_bytes()
        self._bytes_without_special: Seq[bytes] | None = None
        if self._bytes is not None:
            special = tokenizer.special_token_ids
            self._bytes_without_special = [b"" if i in special else piece for i, piece in enumerate(self._bytes)]

    def make(self, params: SamplingParams, prompt_token_ids: Seq[int]) -> Detokenizer:
        stops = params.stop_strings
        return Detokenizer(
            self._decoder(params, prompt_token_ids),
            StopStrings(stops, include=params.include_stop_str_in_output) if stops else None,
        )

    def _decoder(self, params: SamplingParams, prompt_token_ids: Seq[int]) -> _Decoder:
        token_bytes = self._bytes_without_special if params.skip_special_tokens else self._bytes
        if token_bytes is not None:
            return _ByteDecoder(token_bytes)
        context = self._from_whole_character(prompt_token_ids[-self._CONTEXT :])
        return _ContextDecoder(self._tokenizer, context, skip_special_tokens=params.skip_special_tokens)

    def _from_whole_character(self, context: Seq[int]) -> Seq[int]:
        """`context` without the rest of a character that it cuts: half of one would spoil the bytes that follow."""
        for start in range(4):  # a character has at most four bytes, so at most three of them are left over
            if "\ufffd" not in self._tokenizer.decode(context[start:]):
                return context[start:]
        return context
