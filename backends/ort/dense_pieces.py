"""Cuts a step into the pieces that a dense graph can run: one token of several sequences, or a chunk of one.

Knows numpy only.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nanovllm.batch import Batch

__all__ = ["Piece", "split_step"]

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive new tokens of one sequence.

    token_ids: int64 (num_tokens,). context_len: tokens of the sequence that come before them. wanted: int64, which of
    the tokens' logits are wanted. rows: int64, the rows of the step's logits that these are.
    """

    seq_id: int
    token_ids: Int64Array
    context_len: int
    wanted: Int64Array
    rows: Int64Array

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def total_len(self) -> int:
        return self.context_len + len(self.token_ids)


def split_step(batch: Batch, *, max_tokens: int, last_row_only: bool) -> tuple[list[Piece], list[Piece]]:
    """The sequences with one new token, which may run together, and the pieces of the others, to be run in order.

    max_tokens: longest piece. last_row_only: a piece's logits are those of its last token, so a piece ends where some
    are wanted.
    """
    singles, chunks = [], []
    for i in range(batch.num_seqs):
        pieces = list(_pieces(batch, i, max_tokens, last_row_only))
        if len(pieces) == 1 and pieces[0].num_tokens == 1:
            singles += pieces
        else:
            chunks += pieces
    return singles, chunks


def _pieces(batch: Batch, i: int, max_tokens: int, last_row_only: bool) -> Iterator[Piece]:
    begin, end = int(batch.query_start[i]), int(batch.query_start[i + 1])
    rows = np.arange(batch.logits_start[i], batch.logits_start[i + 1])
    wanted = batch.logits_indices[rows].astype(np.int64)  # packed token indices
    cuts = {*range(begin + max_tokens, end, max_tokens), end}
    if last_row_only:
        cuts |= {int(token) + 1 for token in wanted}
    for cut in sorted(cuts):
        inside = (wanted >= begin) & (wanted < cut)
        yield Piece(
            batch.seq_ids[i],
            batch.token_ids[begin:cut],
            int(batch.context_lens[i]) + begin - int(batch.query_start[i]),
            wanted[inside] - begin,
            rows[inside],
        )
        begin = cut
