"""The step contract: what the engine hands to a model runner for one step, and what comes back.

Packed and ragged, all numpy, no padding but in `block_tables`. Three sequences, one of them in decode:

    sequence        0           1   2
    token_ids     [ a b c d   | e | f g ]        the new tokens of this step
    query_start   [ 0           4   5     7 ]
    context_lens  [ 32          9   0 ]          tokens of each that already lie in the KV cache
    logits_indices  [       3     4     6 ]      sequence 0 is in mid-prompt here if 3 is absent

A `Batch` and its arrays belong to the engine and are valid until the step's output has been returned; a runner
must not write to them. Knows nothing about scheduling or sampling rules.
"""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = [
    "LAST_SAMPLED",
    "SAMPLING_ROW",
    "Batch",
    "LogitsEdits",
    "LogitsProcessor",
    "Penalties",
    "RowLogprobs",
    "SamplingBatch",
    "StepOutput",
    "TokenMask",
    "last_sampled_rows",
]

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
UInt32Array = npt.NDArray[np.uint32]

SAMPLING_ROW = np.dtype([("temperature", "<f4"), ("top_k", "<i4"), ("top_p", "<f4"), ("min_p", "<f4"), ("seed", "<u8")])
"""How one wanted row is sampled. temperature 0 = greedy; top_k 0, top_p 1 and min_p 0 = off."""

LAST_SAMPLED = -1
"""In `Batch.token_ids`: the token that the step submitted just before this one samples for the sequence, and that the
engine does not know yet. Only a runner that declares `overlaps` is given it."""

LogitsProcessor = Callable[[list[int], Float32Array], Float32Array]
"""A user's own edit: (token ids generated so far, logits (vocab_size,)) -> logits (vocab_size,).

It may change the logits that it is given and return them. It is called once for every token that is sampled (again for
a drafted token), in the engine's thread, and must depend on its arguments alone."""


class TokenMask(Protocol):
    """Which tokens are allowed, known by the time the logits are: `result()` waits where it is still being computed.

    result: uint32 (ceil(vocab_size / 32),); bit i % 32 of word i // 32 is set where token i is allowed. Not to be
    written to. Bits past the vocabulary are clear. May be called more than once.
    """

    def result(self) -> UInt32Array: ...


@dataclass(frozen=True, slots=True)
class Penalties:
    """Penalties on tokens that a sequence has already seen; vLLM's, and the first Hugging Face's.

    token_ids: int64 (num_seen,), the distinct tokens of prompt and output. counts: int32 (num_seen,), how often each
    stands in the output: 0 for those of the prompt alone. For each of them, with logit x and count c:

        x = x / repetition if x > 0 else x * repetition
        x = x - frequency * c - (presence if c > 0 else 0)
    """

    token_ids: Int64Array
    counts: Int32Array
    repetition: float
    frequency: float
    presence: float


@dataclass(frozen=True, slots=True)
class LogitsEdits:
    """What is done to the logits of one row before it is sampled, in the order of the fields (vLLM's order).

    allowed: every other token gets -inf. banned: int64 (n,), these get -inf, unless no token would be left.
    bias_ids, bias: int64 (m,) and float32 (m,), added. processors: called last, with output_token_ids.
    """

    allowed: TokenMask | None = None
    banned: Int64Array | None = None
    bias_ids: Int64Array | None = None
    bias: Float32Array | None = None
    penalties: Penalties | None = None
    processors: tuple[LogitsProcessor, ...] = ()
    output_token_ids: Seq[int] = ()


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """How each wanted row is sampled.

    rows: structured array of dtype SAMPLING_ROW, shape (num_logits,).
    positions: int64 (num_logits,), the position that the sampled token will take in its sequence; with the seed
    it determines the uniform random number of the row.
    edits: by row; rows without edits are absent.
    num_logprobs: int32 (num_logits,): how many of the likeliest tokens' log-probabilities a row wants beside its own
    token's, -1 = not even that. None: no row wants any.
    targets: int64 (num_logits,): -1 for a row that is sampled; else the row is not sampled, only the log-probability of
    this token (the next one of a prompt) is wanted. None: every row is sampled.
    """

    rows: npt.NDArray[np.void]
    positions: Int64Array
    edits: Mapping[int, LogitsEdits] = field(default_factory=dict)
    num_logprobs: Int32Array | None = None
    targets: Int64Array | None = None

    def take(self, indices: Int64Array) -> "SamplingBatch":
        """The rows at `indices`, int64 (n,), as a batch of their own."""
        places = {index: place for place, index in enumerate(indices.tolist()) if index in self.edits}
        return SamplingBatch(
            rows=self.rows[indices],
            positions=self.positions[indices],
            edits={place: self.edits[index] for index, place in places.items()},
            num_logprobs=None if self.num_logprobs is None else self.num_logprobs[indices],
            targets=None if self.targets is None else self.targets[indices],
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's work. See the module's diagram; T = num_tokens, S = num_seqs, R = num_logits.

    seq_ids: S ids that stay the same for a sequence's whole life.
    released_seq_ids: sequences finished, aborted or preempted since the last step: their state may be dropped.
    token_ids: int64 (T,); LAST_SAMPLED only as the last token of a sequence, and only for a runner that overlaps.
    positions: int64 (T,).
    query_start: int32 (S + 1,); sequence i owns tokens query_start[i] .. query_start[i + 1], at least one.
    context_lens: int32 (S,), tokens already in the KV cache before this step.
    block_tables: int32 (S, max_blocks), padded with 0; entries past a sequence's length are never read.
    slot_mapping: int32 (T,), block_id * block_size + offset: where each token's key and value are written.
    logits_indices: int32 (R,), ascending packed token indices whose logits are wanted; R may be 0.
    logits_start: int32 (S + 1,); rows logits_start[i] .. logits_start[i + 1] belong to sequence i.
    adapter_ids: int32 (S,), 0 = none.
    """

    seq_ids: Seq[int]
    released_seq_ids: Seq[int]
    token_ids: Int64Array
    positions: Int64Array
    query_start: Int32Array
    context_lens: Int32Array
    block_tables: Int32Array
    slot_mapping: Int32Array
    logits_indices: Int32Array
    logits_start: Int32Array
    adapter_ids: Int32Array
    sampling: SamplingBatch

    @property
    def num_seqs(self) -> int:
        return len(self.seq_ids)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_logits(self) -> int:
        return len(self.logits_indices)


def last_sampled_rows(batch: Batch, before: Batch) -> tuple[Int64Array, Int64Array]:
    """Where `batch` leaves a token unknown, and what samples it: packed token indices and, for each, a row of logits of
    `before`, which was submitted just before; both int64 (n,).

    So a runner that has the sampled token of every row at hand, on its device, writes
    `token_ids[indices] = sampled[rows]`. Raises KeyError where `before` does not hold the sequence.
    """
    indices = np.flatnonzero(batch.token_ids == LAST_SAMPLED)
    owners = np.searchsorted(batch.query_start, indices, side="right") - 1
    if batch.seq_ids == before.seq_ids:
        places = owners
    else:
        place_of = {seq_id: place for place, seq_id in enumerate(before.seq_ids)}
        places = np.array([place_of[batch.seq_ids[owner]] for owner in owners.tolist()], np.int64)
    return indices, before.logits_start[places + 1].astype(np.int64) - 1


@dataclass(frozen=True, slots=True)
class RowLogprobs:
    """Log-probabilities of one row, natural logarithms of the model's own distribution: before edits and temperature.

    token_ids: int64 (k + 1,), logprobs: float32 (k + 1,): first the row's own token (sampled, or the target), then the
    k likeliest, descending, the lower id first where two are equal. rank: of the own token among all, 1 = likeliest.
    """

    token_ids: Int64Array
    logprobs: Float32Array
    rank: int


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step sampled.

    token_ids: one list per sequence, in the batch's order: a token for each of its sampled rows, so empty where none
    was wanted. A runner may add further tokens that it has proven by itself where one row was wanted.
    logprobs: one entry per row, None where `num_logprobs` is -1; or None where no row wanted any.
    """

    token_ids: Seq[Seq[int]]
    logprobs: Seq[RowLogprobs | None] | None = None
