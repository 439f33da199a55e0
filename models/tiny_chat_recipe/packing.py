"""From documents to training batches. In: a stream of documents; out: arrays of token ids and of loss flags."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from models.tiny_chat_recipe.conversation import END_OF_TEXT, TURN_END, render
from models.tiny_chat_recipe.corpus import Document
from models.tiny_chat_recipe.tokenizer import token_id

_NUM_DOCUMENTS_AT_ONCE = 512


@dataclass(frozen=True)
class Batch:
    """Rows of packed documents; row i predicts `token_ids[i, 1:]` where `in_loss[i, 1:]`."""

    token_ids: NDArray[np.int64]  # (num_rows, row_length + 1)
    in_loss: NDArray[np.bool_]  # (num_rows, row_length + 1)


class Packer:
    """Fills rows with documents, each followed by the end-of-text token; a row always begins with a new document.

    The loss is on the assistant's turns with their closing token, and on the whole of a plain text.
    """

    def __init__(self, tokenizer: Tokenizer, documents: Iterator[Document]) -> None:
        self._tokenizer = tokenizer
        self._encoded = self._encode(documents)
        self._end_of_text_id = token_id(tokenizer, END_OF_TEXT)
        self._turn_end_id = token_id(tokenizer, TURN_END)
        header = render((), add_generation_prompt=True)
        self._header_ids: list[int] = tokenizer.encode(header, add_special_tokens=False).ids

    def batch(self, num_rows: int, row_length: int) -> Batch:
        """Return the next batch."""
        token_ids = np.empty((num_rows, row_length + 1), np.int64)
        in_loss = np.empty((num_rows, row_length + 1), np.bool_)
        for row in range(num_rows):
            filled = 0
            while filled <= row_length:
                ids, flags = next(self._encoded)
                end = min(filled + len(ids), row_length + 1)
                token_ids[row, filled:end] = ids[: end - filled]
                in_loss[row, filled:end] = flags[: end - filled]
                filled = end
        return Batch(token_ids, in_loss)

    def _encode(self, documents: Iterator[Document]) -> Iterator[tuple[list[int], list[bool]]]:
        while block := list(islice(documents, _NUM_DOCUMENTS_AT_ONCE)):
            texts = [document if isinstance(document, str) else render(document) for document in block]
            encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
            for document, encoding in zip(block, encodings, strict=True):
                ids = [*encoding.ids, self._end_of_text_id]
                yield ids, [True] * len(ids) if isinstance(document, str) else self._assistant_flags(ids)

    def _assistant_flags(self, ids: list[int]) -> list[bool]:
        """Return which tokens the assistant says: those after its header up to the turn's end, that one included."""
        flags, inside, size = [False] * len(ids), False, len(self._header_ids)
        for index, current_id in enumerate(ids):
            flags[index] = inside
            if inside:
                inside = current_id != self._turn_end_id
            else:
                inside = ids[max(index + 1 - size, 0) : index + 1] == self._header_ids
        return flags
