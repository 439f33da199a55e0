"""A `Batch` as the arrays that `StepTensors` are filled from. All numpy; knows no device."""

from typing import Any

import numpy as np
import numpy.typing as npt

from backends.pytorch.device_sampler import sampling_rows
from nanovllm.batch import Batch, Int32Array, Int64Array

__all__ = ["step_arrays"]


def step_arrays(
    batch: Batch, is_chosen: npt.NDArray[np.bool_], slots: Int32Array, spare_slot: int
) -> dict[str, npt.NDArray[Any]]:
    """By the names of `StepTensors`. is_chosen: (num_logits,), rows that the device samples. slots: of each sequence's
    latest token. spare_slot: for tokens that no later step asks for."""
    sampling = batch.sampling
    chosen = np.flatnonzero(is_chosen)
    return {
        "token_ids": _token_ids(batch, slots),
        "positions": batch.positions,
        "slot_mapping": batch.slot_mapping,
        "query_start": batch.query_start,
        "context_lens": batch.context_lens,
        "block_tables": batch.block_tables,
        "wanted": batch.logits_indices,
        "chosen": chosen,
        "others": np.flatnonzero(~is_chosen),
        "token_slots": _token_slots(batch, slots, spare_slot)[chosen],
        "sampling": sampling_rows(sampling.rows[chosen], sampling.positions[chosen]),
    }


def _token_ids(batch: Batch, slots: Int32Array) -> Int64Array:
    """Token ids; -1 - slot for those that are known on the device alone."""
    unknown = np.flatnonzero(batch.token_ids < 0)
    if not len(unknown):
        return batch.token_ids
    token_ids = batch.token_ids.copy()
    owners = np.searchsorted(batch.query_start, unknown, side="right") - 1
    token_ids[unknown] = -1 - slots[owners]
    return token_ids


def _token_slots(batch: Batch, slots: Int32Array, spare_slot: int) -> Int32Array:
    """int32 (num_logits,): where each row's token is kept; of a sequence's rows the last one counts."""
    starts = batch.logits_start
    has_rows = starts[1:] > starts[:-1]
    row_slots = np.full(batch.num_logits, spare_slot, np.int32)
    row_slots[starts[1:][has_rows] - 1] = slots[has_rows]
    return row_slots
