"""Log-probabilities in the forms of OpenAI's two APIs and of vLLM's prompt_logprobs.

In: the engine's entries, one for each token. Out: models of the protocol. JSON has no minus infinity:
-9999 stands for it.
"""

import codecs
from collections.abc import Sequence

from nanovllm.outputs import Logprob, TokenLogprobs
from nanovllm.plugins.interfaces import Tokenizer
from nanovllm.server.protocol.chat import ChatLogprob, ChatLogprobs, TokenLogprob
from nanovllm.server.protocol.completions import CompletionLogprobs, PromptLogprobs

__all__ = ["LogprobFormat", "TextOffsets", "prompt_logprobs"]

_LEAST = -9999.0


class TextOffsets:
    """Where each token begins in a text, in characters.

    hidden: ids whose text is not part of it, such as special tokens. A token that only completes a character begins
    where that character does.
    """

    def __init__(self, tokenizer: Tokenizer, hidden: frozenset[int], start: int = 0) -> None:
        self._token_bytes = tokenizer.token_bytes()
        self._hidden = hidden
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._end = start

    def next(self, token_id: int, text: str) -> int:
        """The offset of the next token, whose own text is `text`."""
        offset = self._end
        if token_id not in self._hidden:
            pieces = self._token_bytes
            known = pieces is not None and token_id < len(pieces)
            self._end += len(self._utf8.decode(pieces[token_id])) if pieces is not None and known else len(text)
        return offset


class LogprobFormat:
    """as_token_ids: tokens are written as "token_id:7", which tells apart those whose texts look the same."""

    def __init__(self, tokenizer: Tokenizer, *, as_token_ids: bool = False) -> None:
        self._tokenizer = tokenizer
        self._token_bytes = tokenizer.inner_token_bytes()
        self._as_token_ids = as_token_ids

    def completion(
        self, token_ids: Sequence[int], entries: Sequence[TokenLogprobs | None], offsets: TextOffsets
    ) -> CompletionLogprobs:
        """For /v1/completions. An entry is None where nothing predicts the token: the first of a prompt."""
        tokens, own, top, starts = [], [], [], []
        for token_id, entry in zip(token_ids, entries, strict=True):
            text = self._text(token_id) if entry is None else entry[token_id].decoded_token
            tokens.append(self._token(token_id, text))
            starts.append(offsets.next(token_id, text))
            own.append(None if entry is None else _finite(entry[token_id]))
            top.append(None if entry is None else self._alternatives(entry))
        return CompletionLogprobs(tokens=tokens, token_logprobs=own, top_logprobs=top, text_offset=starts)

    def chat(self, entries: Sequence[TokenLogprobs], num_top: int) -> ChatLogprobs:
        """For /v1/chat/completions: of each entry its own token, and the `num_top` likeliest."""
        content = []
        for entry in entries:
            (token_id, logprob), *_ = entry.items()
            ranked = sorted((item for item in entry.items() if item[1].rank <= num_top), key=lambda item: item[1].rank)
            own = self._chat_logprob(token_id, logprob)
            top = [self._chat_logprob(*item) for item in ranked]
            content.append(TokenLogprob(token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=top))
        return ChatLogprobs(content=content)

    def _alternatives(self, entry: TokenLogprobs) -> dict[str, float]:
        """By text; of tokens that look the same, the one that was sampled, else the likeliest."""
        alternatives: dict[str, float] = {}
        for token_id, logprob in entry.items():
            alternatives.setdefault(self._token(token_id, logprob.decoded_token), _finite(logprob))
        return alternatives

    def _chat_logprob(self, token_id: int, logprob: Logprob) -> ChatLogprob:
        pieces = self._token_bytes
        piece = pieces[token_id] if pieces is not None and token_id < len(pieces) else logprob.decoded_token.encode()
        token = self._token(token_id, logprob.decoded_token)
        return ChatLogprob(token=token, logprob=_finite(logprob), bytes=list(piece))

    def _token(self, token_id: int, text: str) -> str:
        return f"token_id:{token_id}" if self._as_token_ids else text

    def _text(self, token_id: int) -> str:
        return self._tokenizer.decode([token_id], skip_special_tokens=False)


def prompt_logprobs(entries: Sequence[TokenLogprobs | None]) -> PromptLogprobs:
    """vLLM's form."""
    return [
        None
        if entry is None
        else {
            token_id: {"logprob": _finite(each), "rank": each.rank, "decoded_token": each.decoded_token}
            for token_id, each in entry.items()
        }
        for entry in entries
    ]


def _finite(logprob: Logprob) -> float:
    return max(logprob.logprob, _LEAST)
