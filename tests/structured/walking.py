"""What the tests of structured output share: a byte tokenizer, tiny-chat's, and random walks through a grammar."""

import random
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as RustTokenizer

from backends.tokenizers.hf import HFTokenizer
from nanovllm.engine.grammar import Grammar, GrammarCompiler
from nanovllm.plugins import Tokenizer

TINY_CHAT = Path(__file__).parents[2] / "models" / "tiny-chat"
MAX_TOKENS = 4000


class ByteTokenizer(Tokenizer):
    """Ids 0 .. 255 are the bytes, 256 and 257 end a sequence."""

    vocab_size = 258
    special_token_ids = frozenset({256, 257})

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Seq[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(i for i in token_ids if i < 256).decode("utf-8", "replace")

    def token_bytes(self) -> Seq[bytes]:
        return [*(bytes([byte]) for byte in range(256)), b"<end>", b"<stop>"]


class WideTokenizer(ByteTokenizer):
    """As wide as a real one: beside the bytes, random pieces of lower-case words, digits and punctuation, seeded."""

    vocab_size = 151_936

    def token_bytes(self) -> Seq[bytes]:
        rng = random.Random(0)
        pieces: dict[bytes, None] = {}
        while len(pieces) < self.vocab_size - ByteTokenizer.vocab_size:
            alphabet = rng.choice(["etaoinshrdlucmfwypvbgkjqxz"] * 4 + ['0123456789{}[]":,.-_ ', "éüñøß漢字日本кир"])
            piece = rng.choice([" ", ""]) + "".join(rng.choices(alphabet, k=rng.randint(2, 9)))
            pieces[piece.encode()] = None
        return [*super().token_bytes(), *pieces]


@dataclass(frozen=True)
class Setup:
    """A tokenizer, the width of its model's logits, its end-of-sequence ids and a compiler for them."""

    tokenizer: Tokenizer
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    compiler: GrammarCompiler

    @classmethod
    def of(cls, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: tuple[int, ...]) -> "Setup":
        return cls(tokenizer, vocab_size, eos_token_ids, GrammarCompiler(tokenizer, vocab_size, eos_token_ids))


def byte_setup() -> Setup:
    return Setup.of(ByteTokenizer(), 300, (256, 257))


def tiny_chat_setup() -> Setup:
    tokenizer = HFTokenizer(RustTokenizer.from_file(str(TINY_CHAT / "tokenizer.json")))
    return Setup.of(tokenizer, 2100, tuple(sorted(tokenizer.special_token_ids)[:2]))


def allowed_ids(words: npt.NDArray[np.uint32]) -> list[int]:
    bits = np.unpackbits(words.astype("<u4").view(np.uint8), bitorder="little")
    ids: list[int] = np.flatnonzero(bits).tolist()
    return ids


def walk(setup: Setup, grammar: Grammar, rng: random.Random, free_tokens: int = 60) -> tuple[list[int], str]:
    """Token ids (without the end) and text of one output: each token drawn among those allowed, until the end.

    After `free_tokens` it hurries: the end if it is allowed, else mostly what closes or divides something.
    """
    state, token_ids = grammar.start(), list[int]()
    while len(token_ids) < MAX_TOKENS:
        allowed = allowed_ids(state.masks()[0].result())
        token_id = rng.choice(allowed) if len(token_ids) < free_tokens else hurried_choice(setup, allowed, rng)
        state.accept(token_id)
        if token_id in setup.eos_token_ids:
            return token_ids, setup.tokenizer.decode(token_ids)
        token_ids.append(token_id)
    raise AssertionError(f"no end after {MAX_TOKENS} tokens: {setup.tokenizer.decode(token_ids)[:200]!r}")


def hurried_choice(setup: Setup, allowed: list[int], rng: random.Random) -> int:
    for token_id in setup.eos_token_ids:
        if token_id in allowed:
            return token_id
    texts = {setup.tokenizer.decode([token_id]): token_id for token_id in allowed}
    closing = [texts[text] for text in ('"', "}", "]") if text in texts]
    dividing = [token_id for text, token_id in texts.items() if len(text) == 1 and not text.isalnum()]
    for token_ids in (closing, dividing):
        if token_ids and rng.random() < 0.6:  # not always: neither need lead to an end
            return rng.choice(token_ids)
    return rng.choice(allowed)
