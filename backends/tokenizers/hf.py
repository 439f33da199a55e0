"""HFTokenizer: tokenizer.json through the `tokenizers` library."""

import json
import re
from collections.abc import Sequence as Seq
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from nanovllm.errors import ModelError, PromptError
from nanovllm.plugins import ModelSource, Tokenizer

__all__ = ["HFTokenizer"]


class HFTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library. Truncation and padding that its file asks for are switched off."""

    def __init__(self, rust: RustTokenizer) -> None:
        rust.no_truncation()
        rust.no_padding()
        self._rust = rust
        self.vocab_size = max(rust.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        added = rust.get_added_tokens_decoder()
        self.special_token_ids = frozenset(token_id for token_id, token in added.items() if token.special)

    @classmethod
    def load(cls, source: ModelSource) -> "HFTokenizer":
        """Reads the folder's tokenizer.json. Raises `ModelError`."""
        assert source.folder is not None, "can_load has refused a source without a folder"
        path = source.folder / "tokenizer.json"
        try:
            return cls(RustTokenizer.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception
            raise ModelError(f"{path} cannot be read: {error}. Get it again, or export the model again.") from error

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        try:
            token_ids: list[int] = self._rust.encode(text, add_special_tokens=add_special_tokens).ids
        except (UnicodeError, TypeError) as error:
            raise PromptError(f"the prompt {text!r} is not valid text: {error}") from error
        return token_ids

    def decode(self, token_ids: Seq[int], *, skip_special_tokens: bool = True) -> str:
        text: str = self._rust.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_bytes(self) -> Seq[bytes] | None:
        return self._token_bytes

    @cached_property
    def _token_bytes(self) -> list[bytes] | None:
        """The bytes of each id, where the decoder is plain ByteLevel; ids without a token have none."""
        if self._decoder.get("type") != "ByteLevel":
            return None
        byte_of = _byte_level_alphabet()
        pieces = [b""] * self.vocab_size
        for text, token_id in self._rust.get_vocab(with_added_tokens=True).items():
            try:
                pieces[token_id] = bytes(byte_of[char] for char in text)
            except KeyError:  # an added token, written as it is
                pieces[token_id] = text.encode()
        return pieces

    def inner_token_bytes(self) -> Seq[bytes] | None:
        return self._token_bytes or self._sentencepiece_bytes

    @cached_property
    def _sentencepiece_bytes(self) -> list[bytes] | None:
        """The bytes of each id inside a text, where the decoder is one made for sentencepiece's vocabularies."""
        space = _sentencepiece_space(self._decoder)
        if space is None:
            return None
        bytes_are_spelt = any(step["type"] == "ByteFallback" for step in self._decoder.get("decoders", ()))
        pieces = [b""] * self.vocab_size
        for text, token_id in self._rust.get_vocab(with_added_tokens=True).items():
            if bytes_are_spelt and _SPELT_BYTE.fullmatch(text):
                pieces[token_id] = bytes.fromhex(text[3:5])
            else:
                pieces[token_id] = text.replace(space, " ").encode()
        return pieces

    @cached_property
    def _decoder(self) -> dict[str, Any]:
        """The decoder's part of tokenizer.json; empty where there is none."""
        decoder: dict[str, Any] | None = json.loads(self._rust.to_str())["decoder"]
        return decoder or {}


_SPELT_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")


def _sentencepiece_space(decoder: dict[str, Any]) -> str | None:
    """What stands for a space, where the decoder changes nothing else but spelt bytes and the start of the text."""
    space: str | None = None
    for step in decoder.get("decoders", [decoder]):
        match step:
            case {"type": "Metaspace", "replacement": str(char)}:
                space = char
            case {"type": "Replace", "pattern": {"String": str(char)}, "content": " "}:
                space = char
            case {"type": "Strip", "content": " ", "stop": 0} | {"type": "ByteFallback" | "Fuse"}:
                pass
            case _:
                return None
    return space


def _byte_level_alphabet() -> dict[str, int]:
    """Byte of each character in the byte-level BPE alphabet of GPT-2 (Radford et al. 2019, encoder.py).

    Printable Latin-1 bytes stand for themselves; the others take the characters from U+0100 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
