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

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["SAMPLING_ROW", "Batch", "SamplingBatch", "StepOutput"]

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]

SAMPLING_ROW = np.dtype([("temperature", "<f4"), ("top_k", "<i4"), ("top_p", "<f4"), ("min_p", "<f4"), ("seed", "<u8")])
"""How one wanted row is sampled. temperature 0 = greedy; top_k 0, top_p 1 and min_p 0 = off."""


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """How each wanted row is sampled.

    rows: structured array of dtype SAMPLING_ROW, shape (num_logits,).
    positions: int64 (num_logits,), the position that the sampled token will take in its sequence; with the seed
    it determines the uniform random number of the row.
    """

    rows: npt.NDArray[np.void]
    positions: Int64Array


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's work. See the module's diagram; T = num_tokens, S = num_seqs, R = num_logits.

    seq_ids: S ids that stay the same for a sequence's whole life.
    released_seq_ids: sequences finished, aborted or preempted since the last step: their state may be dropped.
    token_ids: int64 (T,). positions: int64 (T,).
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


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step sampled: one list of token ids per sequence, in the batch's order; empty where no row was wanted."""

    token_ids: Seq[Seq[int]]
