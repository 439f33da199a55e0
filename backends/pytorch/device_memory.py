"""How much of a device's memory the KV cache may have.

In: the device's memory, what a step takes at its largest, and the share that the user grants. Out: bytes. On a CPU the
engine sizes the cache from the machine's memory instead.
"""

from collections.abc import Callable
from typing import Protocol

import torch

__all__ = ["DEFAULT_UTILIZATION", "CUDAMemory", "DeviceMemory", "kv_cache_bytes"]

DEFAULT_UTILIZATION = 0.9  # as in vLLM


class DeviceMemory(Protocol):
    """The memory of one device, all in bytes. utilization: the share of it that may be used. others_bytes: what was
    taken before anything of the model was, by other programs and in this one."""

    utilization: float
    others_bytes: int

    def total_and_free(self) -> tuple[int, int]:
        """The device's memory, and what of it neither we nor others have taken."""

    def peak_bytes(self, run: Callable[[], object]) -> int:
        """How much more than before is taken while `run` runs, at the worst."""


def kv_cache_bytes(memory: DeviceMemory, *runs: Callable[[], object]) -> int:
    """What is left of the granted share when each of `runs` has memory of its own, which it keeps; no more than is
    there. As in vLLM the share is this model's alone, so that two can have half of a device each."""
    needed = sum(memory.peak_bytes(run) for run in runs)
    total, free = memory.total_and_free()
    taken = total - free - memory.others_bytes
    return max(0, min(int(total * memory.utilization) - taken, free) - needed)


class CUDAMemory:
    """`DeviceMemory` as the driver and torch's allocator tell it; made before the model is loaded."""

    def __init__(self, device: torch.device, utilization: float) -> None:
        self.utilization = utilization
        self._device = device
        total, free = self.total_and_free()
        self.others_bytes = total - free

    def total_and_free(self) -> tuple[int, int]:
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()  # what torch keeps for reuse is free as well
        free, total = torch.cuda.mem_get_info(self._device)
        return total, free

    def peak_bytes(self, run: Callable[[], object]) -> int:
        self.total_and_free()
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_reserved(self._device)
        run()
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_reserved(self._device) - before
