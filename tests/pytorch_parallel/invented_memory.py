"""Device runners on the CPU whose devices have memory that a test invents, a different one for each rank."""

from collections.abc import Callable
from pathlib import Path

from backends.pytorch.device_runner import DeviceRunner
from backends.pytorch.parallel.collective import Collective
from tests.pytorch.device_driver import RerunGraph, load_device

__all__ = ["LEFT_BYTES", "load_uneven"]

LEFT_BYTES = (70_000, 50_000)  # by rank, for the KV cache


class _Memory:
    """1,000,000 bytes, of which the model has some; each of the two runs takes 700 more."""

    utilization = 0.8
    others_bytes = 0

    def __init__(self, left_bytes: int) -> None:
        self._free = 200_000 + left_bytes + 2 * 700

    def total_and_free(self) -> tuple[int, int]:
        return 1_000_000, self._free

    def peak_bytes(self, run: Callable[[], object]) -> int:
        run()
        return 700


def load_uneven(folder: Path, *, collective: Collective) -> DeviceRunner:
    memory = _Memory(LEFT_BYTES[collective.rank.number])
    return load_device(folder, capture=RerunGraph, memory=memory, collective=collective)
