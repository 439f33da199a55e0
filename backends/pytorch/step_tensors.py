"""What a step needs on its device, in memory of fixed addresses that one copy fills.

    words  [ token_ids | positions | slot_mapping | query_start | context_lens | block_tables | wanted | ... ]

In: numpy arrays of a `Batch`. Out: tensors that are views of one block of int32 words on the device. The words are put
together in pinned memory of the host and sent at once, without waiting. Where a part begins depends on the sizes of the
step alone, so a captured graph that was made for some sizes finds them where they were. A step may be smaller than the
sizes that it is laid out for: its rows are then filled up with tokens that belong to no sequence and have no slot.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from backends.pytorch.arrivals import StepEvent, make_event, on_host

__all__ = ["StepBuffers", "StepShape", "StepTensors"]

NUM_SAMPLING_ROWS = 5  # of StepTensors.sampling
_WORDS_PER_FLOAT64 = 2
_NUM_STAGES = 2  # one is filled while the other may still be on its way

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class StepShape:
    """Sizes that a step is laid out for. table_width: blocks of the longest row of block_tables. num_chosen: of the
    num_logits wanted rows, those that are sampled on the device."""

    num_tokens: int
    num_seqs: int
    table_width: int
    num_logits: int
    num_chosen: int

    @property
    def num_words(self) -> int:
        last: int = self.spans()["sampling"].stop
        return last

    def spans(self) -> dict[str, slice]:
        """Where each part lies, in words. What a captured graph reads comes first."""
        sizes = {
            "token_ids": self.num_tokens,
            "positions": self.num_tokens,
            "slot_mapping": self.num_tokens,
            "query_start": self.num_seqs + 1,
            "context_lens": self.num_seqs,
            "block_tables": self.num_seqs * self.table_width,
            "wanted": self.num_logits,
            "chosen": self.num_chosen,
            "others": self.num_logits - self.num_chosen,
            "token_slots": self.num_chosen,
        }
        spans, start = {}, 0
        for name, size in sizes.items():
            spans[name] = slice(start, start + size)
            start += size
        start += start % _WORDS_PER_FLOAT64
        num_words = _WORDS_PER_FLOAT64 * NUM_SAMPLING_ROWS * self.num_chosen
        return {**spans, "sampling": slice(start, start + num_words)}


@dataclass(frozen=True, slots=True)
class StepTensors:
    """A step on the device: views that the next step overwrites. T tokens, S sequences, R wanted rows, C chosen ones.

    token_ids, positions, slot_mapping: int32 (T,). A token id of -1 - s stands for what lies in the slot s of the
    latest tokens. query_start: int32 (S + 1,), context_lens: int32 (S,), block_tables: int32 (S, width). wanted: int32
    (R,), rows whose logits are wanted. chosen, others: int32 (C,) and (R - C,), which of these are sampled on the
    device, and which on the host. token_slots: int32 (C,), where the chosen rows' tokens are kept for later steps.
    sampling: float64 (5, C): temperature, top_k, top_p, min_p and the uniform random number.
    max_query_len: no sequence has more new tokens, in any step that is laid out alike.
    """

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    query_start: Tensor
    context_lens: Tensor
    block_tables: Tensor
    wanted: Tensor
    chosen: Tensor
    others: Tensor
    token_slots: Tensor
    sampling: Tensor
    max_query_len: int


class StepBuffers:
    """The device's words and the host's, for steps of up to `num_words`; larger ones get memory of their own.

    The copy of a step is queued behind what the device still computes, so one block on the device is enough.
    """

    def __init__(self, num_words: int, device: torch.device) -> None:
        self._device = device
        self._words = torch.zeros(num_words, dtype=torch.int32, device=device)
        self._stages = [_Stage(num_words, device) for _ in range(_NUM_STAGES)]
        self._turn = 0

    def put(self, arrays: Arrays, shape: StepShape, max_query_len: int) -> StepTensors:
        """Sends `arrays`, named as in `StepTensors`, none larger than `shape` says. Waits only for the copy of the last
        step but one."""
        num_words = shape.num_words
        words, stage = self._words, self._stages[self._turn]
        if num_words > len(words):
            words = torch.empty(num_words, dtype=torch.int32, device=self._device)
            stage = _Stage(num_words, self._device)
        self._turn = (self._turn + 1) % _NUM_STAGES
        stage.send(arrays, shape, words)
        parts: dict[str, Any] = {name: words[span] for name, span in shape.spans().items()}
        parts["block_tables"] = parts["block_tables"].view(shape.num_seqs, shape.table_width)
        parts["sampling"] = parts["sampling"].view(torch.float64).view(NUM_SAMPLING_ROWS, shape.num_chosen)
        return StepTensors(**parts, max_query_len=max_query_len)


class _Stage:
    """Words on the host, pinned where there is a device to send them to, and the event of their last copy."""

    def __init__(self, num_words: int, device: torch.device) -> None:
        self._words = on_host((num_words,), torch.int32, device)
        self._words.numpy().fill(0)
        self._event: StepEvent = make_event(device)

    def send(self, arrays: Arrays, shape: StepShape, to: Tensor) -> None:
        self._event.synchronize()
        _fill(self._words.numpy(), arrays, shape)
        to[: shape.num_words].copy_(self._words[: shape.num_words], non_blocking=True)
        self._event.record()


def _fill(words: npt.NDArray[np.int32], arrays: Arrays, shape: StepShape) -> None:
    """What is left of a part is filled up so that no sequence has it."""
    for name, span in shape.spans().items():
        part, array = words[span], arrays[name]
        if name == "sampling":
            part.view(np.float64)[:] = array.ravel()
        elif name == "block_tables":
            part.reshape(shape.num_seqs, shape.table_width)[: len(array), : array.shape[1]] = array
        else:
            part[: len(array)] = array
            if len(array) < len(part):
                part[len(array) :] = {"slot_mapping": -1, "query_start": array[-1]}.get(name, 0)
