"""SimpleBPE: a byte-pair tokenizer of a page of plain Python, trained on a paragraph when it is made.

It needs no file and shows how byte-pair encoding works: ids 1 .. 256 are the bytes, 0 ends a sequence, and each further
id joins two earlier ones (Sennrich, Haddow and Birch 2016). Every text survives encode and decode.
"""

import re
from collections import Counter
from collections.abc import Sequence as Seq
from itertools import pairwise

from nanovllm.plugins import Tokenizer

__all__ = ["SimpleBPE"]

_PARAGRAPH = """
A language model reads a text token by token and guesses the next one. While it reads, it keeps what it has seen in a
cache of keys and values, so that the next guess need not read everything again. An engine that serves many readers at
once cuts this cache into blocks, hands the blocks out as the texts grow, and takes them back when a text has ended.
Texts that begin alike can share their first blocks. When the blocks run out, the youngest text waits its turn.
"""
_WORDS = re.compile(r" ?\w+|\s+|[^\w\s]+")


class SimpleBPE(Tokenizer):
    """num_merges: tokens beyond the 256 bytes and the end of sequence."""

    def __init__(self, num_merges: int = 255) -> None:
        self._ranks: dict[tuple[int, int], int] = {}  # pair -> id that joins it; lower ids were merged first
        self._bytes = [b"", *(bytes([b]) for b in range(256))]
        self._learn(num_merges)
        self.vocab_size = len(self._bytes)
        self.special_token_ids = frozenset({0})

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [token_id for word in _WORDS.findall(text) for token_id in self._merge(_byte_ids(word))]

    def decode(self, token_ids: Seq[int], *, skip_special_tokens: bool = True) -> str:
        return b"".join(self._bytes[i] for i in token_ids if i < self.vocab_size).decode("utf-8", "replace")

    def token_bytes(self) -> Seq[bytes]:
        return self._bytes

    def _learn(self, num_merges: int) -> None:
        words = Counter(tuple(_byte_ids(word)) for word in _WORDS.findall(_PARAGRAPH))
        for _ in range(num_merges):
            pairs: Counter[tuple[int, int]] = Counter()
            for word, count in words.items():
                for pair in pairwise(word):
                    pairs[pair] += count
            if not pairs:
                return
            best = max(pairs, key=lambda pair: (pairs[pair], pair))
            self._ranks[best] = len(self._bytes)
            self._bytes.append(self._bytes[best[0]] + self._bytes[best[1]])
            merged: Counter[tuple[int, ...]] = Counter()
            for word, count in words.items():
                merged[tuple(_join(list(word), best, self._ranks[best]))] += count
            words = merged

    def _merge(self, ids: list[int]) -> list[int]:
        while True:
            known = [pair for pair in pairwise(ids) if pair in self._ranks]
            if not known:
                return ids
            best = min(known, key=self._ranks.__getitem__)
            ids = _join(ids, best, self._ranks[best])


def _byte_ids(word: str) -> list[int]:
    return [byte + 1 for byte in word.encode("utf-8", "surrogatepass")]


def _join(ids: list[int], pair: tuple[int, int], joined: int) -> list[int]:
    """`ids` with every occurrence of `pair`, from the left, replaced by one id."""
    result: list[int] = []
    for token_id in ids:
        if result and (result[-1], token_id) == pair:
            result[-1] = joined
        else:
            result.append(token_id)
    return result
