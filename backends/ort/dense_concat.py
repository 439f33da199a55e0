"""ConcatCache: for graphs that join past and new keys into new tensors ("concat" in `dense_graph`).

A run reads one slab and leaves another, one token longer; both are bound, so the copy inside the graph is the only one
while the same sequences go on together. Where they change, a slab is gathered first:

    slab of length 5, three sequences      s7  [ 0  0  a  b  c ]     shorter ones are padded on the left; the mask hides
                                           s9  [ 0  0  0  x  y ]     the padding and the positions do not count it
                                           s3  [ p  q  r  s  t ]

A graph that counts positions by itself, from the length of past, gets sequences of equal length only.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from backends.ort.dense_cache import Array, DenseCache, allocate, check_context, deliver
from backends.ort.dense_graph import DenseGraph
from backends.ort.dense_pieces import Piece

__all__ = ["ConcatCache"]

_ALWAYS_TOGETHER = 64  # tokens: sequences that differ by no more are padded to one length, whatever their share
_MAX_SPARES = 2  # one to gather into, one for the result


class ConcatCache(DenseCache):
    memory_factor = 4  # past and present at once, with spares, padded to less than twice the length

    def __init__(self, graph: DenseGraph) -> None:
        self._graph = graph
        self._held: dict[int, _Held] = {}  # by seq_id
        self._spares: list[list[Array]] = []  # memory of slabs that nobody holds any more, smallest first

    def run(self, pieces: Seq[Piece], logits: npt.NDArray[np.float32]) -> None:
        for group in self._groups(pieces):
            self._run_group(group, logits)

    def release(self, seq_id: int) -> None:
        held = self._held.pop(seq_id, None)
        if held is not None:
            self._leave(held)
        if not self._held:
            self._spares.clear()

    def clear(self) -> None:
        self._held, self._spares = {}, []

    def _groups(self, pieces: Seq[Piece]) -> Iterator[list[Piece]]:
        """Pieces that run together: of like length, by an order that stays the same while all of them grow."""
        group: list[Piece] = []
        for piece in sorted(pieces, key=lambda piece: (piece.context_len, piece.seq_id)):
            if group and piece.context_len > self._longest_beside(group[0].context_len):
                yield group
                group = []
            group.append(piece)
        if group:
            yield group

    def _longest_beside(self, shortest: int) -> int:
        return max(2 * shortest, shortest + _ALWAYS_TOGETHER) if self._graph.has_positions else shortest

    def _run_group(self, pieces: Seq[Piece], logits: npt.NDArray[np.float32]) -> None:
        past, gathered = self._past(pieces)
        num_new = pieces[0].num_tokens
        present = self._slab(len(pieces), past.length + num_new)
        context_lens = np.array([[piece.context_len] for piece in pieces])
        token_ids = np.stack([piece.token_ids for piece in pieces])
        mask = np.arange(present.length) >= past.length - context_lens
        binding = self._graph.binding(past.arrays, present.arrays)
        result = self._graph.run(binding, token_ids, context_lens + np.arange(num_new), mask)
        for row, piece in enumerate(pieces):
            old = self._held.get(piece.seq_id)
            self._held[piece.seq_id] = _Held(present, row, past.length - piece.context_len, piece.total_len)
            present.num_held += 1
            if old is not None:
                self._leave(old)
            deliver(piece, result[row], logits)
        if gathered:
            self._recycle(past)

    def _past(self, pieces: Seq[Piece]) -> tuple["_Slab", bool]:
        """A slab with exactly these sequences' contexts, and whether it was gathered for that."""
        held = []
        for piece in pieces:
            one = self._held.get(piece.seq_id)
            check_context(piece, 0 if one is None else one.num_tokens)
            held.append(one)
        slab = held[0].slab if held[0] else None
        if slab is not None and slab.num_rows == len(pieces):
            ends = [one and (one.slab, one.row, one.start + p.context_len) for one, p in zip(held, pieces, strict=True)]
            if ends == [(slab, row, slab.length) for row in range(len(pieces))]:
                return slab, False
        target = self._slab(len(pieces), max(piece.context_len for piece in pieces))
        for row, (one, piece) in enumerate(zip(held, pieces, strict=True)):
            pad = target.length - piece.context_len
            for i, array in enumerate(target.arrays):
                array[row, :, :pad] = 0  # hidden, but a NaN would still spoil the sum
                if one is not None and piece.context_len:
                    array[row, :, pad:] = one.slab.arrays[i][one.row, :, one.start : one.start + piece.context_len]
        return target, True

    def _slab(self, num_rows: int, length: int) -> "_Slab":
        """Memory for a slab: a spare where one is large enough, else new, with room for some tokens more."""
        graph = self._graph
        shape = (num_rows, graph.num_kv_heads, length, graph.head_dim)
        size = num_rows * graph.num_kv_heads * length * graph.head_dim
        index = next((i for i, spare in enumerate(self._spares) if spare[0].size >= size), None)
        if index is not None:
            memory = self._spares.pop(index)
        else:
            with_room = length + length // 4 + _ALWAYS_TOGETHER
            memory = [allocate(graph, num_rows, with_room).reshape(-1) for _ in range(graph.num_caches)]
        return _Slab(num_rows, length, memory, [flat[:size].reshape(shape) for flat in memory])

    def _leave(self, held: "_Held") -> None:
        held.slab.num_held -= 1
        if not held.slab.num_held:
            self._recycle(held.slab)

    def _recycle(self, slab: "_Slab") -> None:
        self._spares = sorted([*self._spares, slab.memory], key=lambda spare: spare[0].size)[-_MAX_SPARES:]


@dataclass(slots=True, eq=False)
class _Slab:
    """Keys and values as a run left them.

    memory: per cache, a flat array that is at least large enough. arrays: per cache (num_rows, num_kv_heads, length,
    head_dim), the beginning of that. num_held: sequences that still have their row here.
    """

    num_rows: int
    length: int
    memory: list[Array]
    arrays: list[Array]
    num_held: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """One sequence: num_tokens of a slab's row, from `start` on."""

    slab: _Slab
    row: int
    start: int
    num_tokens: int
