"""DenseCache: what both ways of keeping dense keys and values have in common."""

from abc import ABC, abstractmethod
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.ort.dense_graph import DenseGraph
from backends.ort.dense_pieces import Piece
from nanovllm.errors import BackendError

__all__ = ["Array", "DenseCache", "allocate", "check_context", "deliver"]

Array = npt.NDArray[Any]


class DenseCache(ABC):
    """Keys and values of sequences, by seq_id, and the runs of the graph over them.

    memory_factor: bytes that it may take at most, as a multiple of those of the tokens that it holds.
    """

    memory_factor: int

    @abstractmethod
    def run(self, pieces: Seq[Piece], logits: npt.NDArray[np.float32]) -> None:
        """Runs pieces of one token each, or one piece, and puts the wanted rows into `logits`. A sequence that it does
        not know begins here. Raises `BackendError`; the sequences then hold what they held before, or more."""

    @abstractmethod
    def release(self, seq_id: int) -> None:
        """Forgets a sequence; one that it does not know is no error."""

    @abstractmethod
    def clear(self) -> None:
        """Forgets everything and frees the memory."""


def deliver(piece: Piece, rows: Array, logits: npt.NDArray[np.float32]) -> None:
    """Puts the wanted of a piece's `rows`, (num_tokens or 1, vocab_size), where they belong."""
    if len(piece.rows):
        logits[piece.rows] = rows if len(rows) == 1 else rows[piece.wanted]


def check_context(piece: Piece, num_tokens: int) -> None:
    """num_tokens: what the cache holds of the piece's sequence."""
    if piece.context_len > num_tokens:
        raise BackendError(
            f"sequence {piece.seq_id} is said to have {piece.context_len} tokens in the cache; it has {num_tokens}."
        )


def allocate(graph: DenseGraph, num_rows: int, num_tokens: int) -> Array:
    """Memory of one cache, (num_rows, num_kv_heads, num_tokens, head_dim), untouched: the system hands out a page when
    it is first written. Raises `BackendError`."""
    try:
        return np.empty((num_rows, graph.num_kv_heads, num_tokens, graph.head_dim), graph.kv_dtype)
    except MemoryError as error:
        raise BackendError(
            f"there is no memory for the keys and values of {num_rows} sequences of {num_tokens} tokens. Lower "
            "kv_cache_memory_bytes, max_num_seqs or max_model_len."
        ) from error
