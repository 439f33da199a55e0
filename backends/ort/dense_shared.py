"""SharedCache: for graphs that write new keys and values behind the past ones, in place ("shared" in dense_graph).

Sequences stand in the rows of pools; a pool is one array per cache, (rows, heads, capacity, dim), and a run takes a
range of its rows as they lie: nothing is gathered, scattered or copied in a step.

    pool of 256     row 0  [ s7 s7 s7 .. .. .. ]       a decode runs rows 0 to 2 at once; row 1, in mid-prompt, takes
                    row 1  [ s9 s9 .. .. .. .. ]       part with a token that the next real one overwrites
                    row 2  [ s3 s3 s3 s3 s3 .. ]
    pool of 4096    row 0  [ s5 ...            ]       a run of its own

Memory grows with the sequences: capacities double, and a sequence that outgrows its pool moves to a larger one, which
copies each of its tokens about once in its life. While memory is plenty, sequences move up into the largest pool in
use, so that all decodes run as one. When a sequence leaves, the last row moves into the gap; an empty pool is freed.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.ort.dense_cache import DenseCache, allocate, check_context, deliver
from backends.ort.dense_graph import DenseGraph
from backends.ort.dense_pieces import Piece

__all__ = ["SharedCache"]

_LARGEST_FIRST_CAPACITY = 256  # tokens
_FIRST_ROWS = 4


class SharedCache(DenseCache):
    """num_tokens: what the engine will at most keep here at once, in blocks of block_size. max_model_len: longest
    sequence, in tokens."""

    memory_factor = 2  # capacities double

    def __init__(self, graph: DenseGraph, *, num_tokens: int, block_size: int, max_model_len: int) -> None:
        self._graph = graph
        self._plenty = num_tokens
        self._first_capacity = min(block_size, _LARGEST_FIRST_CAPACITY)
        self._max_model_len = max_model_len
        self._pools: dict[int, _Pool] = {}  # by capacity
        self._held: dict[int, _Held] = {}  # by seq_id

    def run(self, pieces: Seq[Piece], logits: npt.NDArray[np.float32]) -> None:
        by_pool: dict[_Pool, list[Piece]] = {}
        for piece in pieces:
            held = self._held.get(piece.seq_id)
            check_context(piece, 0 if held is None else held.num_tokens)
            self._held[piece.seq_id] = self._make_room(held, piece)
        for piece in pieces:
            by_pool.setdefault(self._held[piece.seq_id].pool, []).append(piece)
        for pool, members in by_pool.items():
            self._run_pool(pool, members, logits)

    def release(self, seq_id: int) -> None:
        held = self._held.pop(seq_id, None)
        if held is not None:
            self._leave(held)

    def clear(self) -> None:
        self._pools, self._held = {}, {}

    def _run_pool(self, pool: "_Pool", pieces: Seq[Piece], logits: npt.NDArray[np.float32]) -> None:
        """Runs the rows of a pool from the first to the last that has a piece."""
        rows = [self._held[piece.seq_id].row for piece in pieces]
        first, last = min(rows), max(rows)
        num_new = pieces[0].num_tokens
        lens = [held.num_tokens for held in pool.rows[first : last + 1]]
        starts = np.minimum(lens, pool.capacity - num_new)[:, None]  # a row that is full to the end has no piece
        token_ids = np.zeros((len(lens), num_new), np.int64)
        for row, piece in zip(rows, pieces, strict=True):
            token_ids[row - first] = piece.token_ids
        mask = np.arange(starts.max() + num_new) < starts + num_new
        binding = pool.binding(first, len(lens))
        result = self._graph.run(binding, token_ids, starts + np.arange(num_new), mask)
        for row, piece in zip(rows, pieces, strict=True):
            pool.rows[row].num_tokens = piece.total_len
            deliver(piece, result[row - first], logits)

    def _make_room(self, held: "_Held | None", piece: Piece) -> "_Held":
        """Where the piece's sequence stands from now on: in a row that holds the piece and a token more, which another
        row's run may write (see the diagram). Tokens past the piece's context are forgotten."""
        needed = min(piece.total_len + 1, self._max_model_len)
        if held is not None:
            held.num_tokens = piece.context_len
            if held.pool.capacity >= needed and len(self._pools) == 1:
                return held
        pool = self._choose_pool(needed, held)
        if held is not None and held.pool is pool:
            return held
        moved = pool.add(piece.context_len)
        if held is not None:
            pool.copy(held, moved)
            self._leave(held)
        return moved

    def _choose_pool(self, needed: int, held: "_Held | None") -> "_Pool":
        """The largest pool in use while memory is plenty, else the smallest that will do; never a smaller one than the
        sequence is in, so that none moves to and fro."""
        reserved = sum(pool.capacity * len(pool.rows) for pool in self._pools.values())
        if held is not None:
            needed = max(needed, held.pool.capacity)
            reserved -= held.pool.capacity
        for capacity in sorted(self._pools, reverse=True):
            if capacity >= needed and reserved + capacity <= self._plenty:
                return self._pools[capacity]
        capacity = self._first_capacity
        while capacity < needed:
            capacity *= 2
        capacity = min(capacity, self._max_model_len)
        if capacity not in self._pools:
            self._pools[capacity] = _Pool(self._graph, capacity)
        return self._pools[capacity]

    def _leave(self, held: "_Held") -> None:
        held.pool.remove(held)
        if not held.pool.rows:
            del self._pools[held.pool.capacity]


@dataclass(slots=True, eq=False)
class _Held:
    """One sequence: the first num_tokens of a pool's row are its own."""

    pool: "_Pool"
    row: int
    num_tokens: int


class _Pool:
    """rows: the sequences, in the order of their rows; the memory may have more rows."""

    def __init__(self, graph: DenseGraph, capacity: int) -> None:
        self.capacity = capacity
        self.rows: list[_Held] = []
        self._graph = graph
        self._num_rows = 0
        self._arrays = [allocate(graph, 0, capacity)] * graph.num_caches
        self._bindings: dict[tuple[int, int], Any] = {}  # by first row and number of rows; they hold addresses

    def add(self, num_tokens: int) -> _Held:
        """A row for another sequence."""
        if len(self.rows) == self._num_rows:
            self._grow(max(_FIRST_ROWS, 2 * self._num_rows))
        held = _Held(self, len(self.rows), num_tokens)
        self.rows.append(held)
        return held

    def remove(self, held: _Held) -> None:
        last = self.rows.pop()
        if last is not held:
            self.rows[held.row] = last
            self.copy(last, held)
            last.row = held.row

    def copy(self, source: _Held, target: _Held) -> None:
        """Copies the tokens of `source`, of any pool, into the row of `target`, of this one."""
        n = source.num_tokens
        for array, other in zip(self._arrays, source.pool._arrays, strict=True):
            array[target.row, :, :n] = other[source.row, :, :n]

    def binding(self, first: int, num_rows: int) -> Any:
        """The binding of a range of rows, past and present alike."""
        key = (first, num_rows)
        if key not in self._bindings:
            views = [array[first : first + num_rows] for array in self._arrays]
            self._bindings[key] = self._graph.binding(views, views)
        return self._bindings[key]

    def _grow(self, num_rows: int) -> None:
        """One cache after the other, so that little is held twice."""
        self._bindings.clear()
        for i, old in enumerate(self._arrays):
            new = allocate(self._graph, num_rows, self.capacity)
            for held in self.rows:
                new[held.row, :, : held.num_tokens] = old[held.row, :, : held.num_tokens]
            self._arrays[i] = new
        self._num_rows = num_rows
