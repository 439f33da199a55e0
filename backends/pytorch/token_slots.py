"""Where the latest token of each sequence lies on the device. In: sequence ids. Out: slot numbers. Knows no tensor."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from nanovllm.errors import BackendError

__all__ = ["TokenSlots"]


class TokenSlots:
    """Gives every sequence a slot from its first step until it is released. One more slot, `spare`, belongs to nobody:
    tokens that nobody will ask for go there."""

    def __init__(self, num_slots: int) -> None:
        self.spare = num_slots
        self._free = list(range(num_slots - 1, -1, -1))
        self._slots: dict[int, int] = {}

    def release(self, seq_ids: Iterable[int]) -> None:
        """Takes back the slots of sequences; unknown ones are no error."""
        for seq_id in seq_ids:
            slot = self._slots.pop(seq_id, None)
            if slot is not None:
                self._free.append(slot)

    def of(self, seq_ids: Sequence[int]) -> npt.NDArray[np.int32]:
        """The slots of `seq_ids`, int32 (len(seq_ids),), new ones for new sequences. Raises `BackendError`."""
        slots = self._slots
        try:
            return np.array([slots[seq_id] for seq_id in seq_ids], np.int32)
        except KeyError:
            new = [seq_id for seq_id in seq_ids if seq_id not in slots]
        if len(new) > len(self._free):
            raise BackendError(
                f"{len(slots) + len(new)} sequences are unfinished; at most {self.spare} may be. Lower max_num_seqs, "
                "or name those that have ended in released_seq_ids."
            )
        slots.update((seq_id, self._free.pop()) for seq_id in new)
        return np.array([slots[seq_id] for seq_id in seq_ids], np.int32)
