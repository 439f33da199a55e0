"""Division of a sequence's keys among several programs, where there are too few programs to keep a device busy.

In: the shape of a launch. Out: how many parts, and the memory in which they leave their sums.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["MOST_SPLITS", "SplitWorkspace"]

MOST_SPLITS = 64
_LEAST_KEYS = 256  # of a part: a shorter one does not pay for the second kernel
_PROGRAMS_PER_PROCESSOR = 3  # that run at once, by what shared memory a decode's program takes
_ROWS_PER_PROGRAM = 64


@dataclass(frozen=True, slots=True)
class SplitWorkspace:
    """Memory for partial sums, allocated once and used by every launch on one stream, captured ones included.

    partial: float32 (capacity, head_dim). maxima, sums: float32 (capacity,). num_processors: of the device.
    least_keys: a part has at least so many keys.
    """

    partial: Tensor
    maxima: Tensor
    sums: Tensor
    num_processors: int
    least_keys: int = _LEAST_KEYS

    @classmethod
    def allocate(
        cls, head_dim: int, num_processors: int, device: torch.device, *, least_keys: int = _LEAST_KEYS
    ) -> "SplitWorkspace":
        """13 MB for heads of 128 on a device of 132 processors. num_processors: as in
        `torch.cuda.get_device_properties(device).multi_processor_count`."""
        capacity = num_processors * _PROGRAMS_PER_PROCESSOR * _ROWS_PER_PROGRAM
        partial = torch.zeros(capacity, head_dim, dtype=torch.float32, device=device)
        maxima, sums = torch.zeros(2, capacity, dtype=torch.float32, device=device)
        return cls(partial, maxima, sums, num_processors, least_keys)

    def num_splits(self, *, num_programs: int, num_rows: int, max_keys: int) -> int:
        """Into how many parts keys are divided: a power of two, 1 for not at all.

        num_programs: of a launch without splits. num_rows: tokens times query heads. max_keys: no sequence has more;
        a bound that holds for every replay of a captured graph.
        """
        wanted = min(
            MOST_SPLITS,
            self.num_processors * _PROGRAMS_PER_PROCESSOR // num_programs,
            max_keys // self.least_keys,
            self.sums.shape[0] // num_rows,
        )
        return 1 << (max(wanted, 1).bit_length() - 1)
