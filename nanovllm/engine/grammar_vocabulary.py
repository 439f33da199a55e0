"""GrammarVocabulary: a Tokenizer in, what llguidance asks of a tokenizer out.

llguidance matches bytes, so it must know the bytes of every token, which tokens are no text, and how forced text is
best cut into tokens. Knows nothing about grammars and does not import llguidance.
"""

from collections.abc import Sequence as Seq
from functools import cached_property

from nanovllm.errors import SamplingParamsError
from nanovllm.plugins import Tokenizer

__all__ = ["GrammarVocabulary"]

_SPECIAL = b"\xff"  # llguidance's mark of a token that is no text; no UTF-8 text has this byte


class GrammarVocabulary:
    """The attributes that llguidance's `TokenizerWrapper` reads, and the call that it makes.

    tokens: bytes of the ids 0 .. vocab_size - 1, the width of the logits; empty for an id that can never be sampled
    under a grammar. special_token_ids: never matched as text; the end-of-sequence ids are among them.

    Raises `SamplingParamsError` where the tokenizer does not know its tokens' bytes or nothing ends a sequence.
    """

    bos_token_id: int | None = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Seq[int]) -> None:
        pieces = tokenizer.inner_token_bytes()
        if pieces is None:
            raise SamplingParamsError(
                "structured_outputs needs the bytes of every token, and this model's tokenizer does not know them "
                "(`Tokenizer.inner_token_bytes`). Leave structured_outputs out, or use another tokenizer."
            )
        self.eos_token_ids = [token_id for token_id in eos_token_ids if token_id < vocab_size]
        if not self.eos_token_ids:
            raise SamplingParamsError(
                "structured_outputs needs an end-of-sequence token, and this model has none, so that its output could "
                "never end. Add eos_token_id to its generation_config.json, or leave structured_outputs out."
            )
        self.eos_token_id = self.eos_token_ids[0]
        special = tokenizer.special_token_ids | set(self.eos_token_ids)
        self.special_token_ids = sorted(token_id for token_id in special if token_id < vocab_size)
        self.tokens = [*pieces[:vocab_size], *[b""] * (vocab_size - len(pieces))]
        for token_id in self.special_token_ids:
            self.tokens[token_id] = _SPECIAL + (self.tokens[token_id] or f"<[{token_id}]>".encode())
        self._tokenizer = tokenizer

    def __call__(self, text: bytes) -> list[int]:
        """Token ids that spell `text`, UTF-8, as the model would most likely write it in the middle of a text.

        Raises nothing: llguidance takes any exception for a tokenizer that wants strings, and a later one for fatal.
        """
        try:
            token_ids = self._tokenizer.encode(text.decode(), add_special_tokens=False)
        except ValueError:  # a tokenizer that does not know every text
            return self._greedy(text)
        if self._spells(token_ids, text):
            return token_ids
        return self._greedy(text)  # it read a special token out of the text, or began with a space of its own

    def _spells(self, token_ids: list[int], text: bytes) -> bool:
        return max(token_ids, default=0) < len(self.tokens) and b"".join(self.tokens[i] for i in token_ids) == text

    def _greedy(self, text: bytes) -> list[int]:
        """The longest token first; stops early where no token goes on."""
        token_ids: list[int] = []
        at = 0
        while at < len(text):
            sizes = range(min(self._longest, len(text) - at), 0, -1)
            size = next((size for size in sizes if text[at : at + size] in self._id_of), None)
            if size is None:
                break
            token_ids.append(self._id_of[text[at : at + size]])
            at += size
        return token_ids

    @cached_property
    def _id_of(self) -> dict[bytes, int]:
        return {piece: token_id for token_id, piece in enumerate(self.tokens) if piece}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.tokens))
