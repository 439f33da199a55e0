"""Waiting for a device: events, and copies to the host that are under way.

The one place, beside the graphs and the memory, where kinds of devices differ: on a CPU everything has happened by the
time a call returns, so events there are empty.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Arrival", "StepEvent", "as_current", "make_event"]


class StepEvent(Protocol):
    """A mark in a device's queue of work."""

    def record(self) -> Any:
        """Puts the mark behind what is queued by now."""

    def synchronize(self) -> Any:
        """Waits until the device is past the mark; returns at once where none was set."""


class _NothingToWaitFor:
    def record(self) -> None: ...

    def synchronize(self) -> None: ...


def make_event(device: torch.device) -> StepEvent:
    if device.type != "cuda":
        return _NothingToWaitFor()
    event: StepEvent = torch.cuda.Event()  # type: ignore[no-untyped-call]
    return event


def as_current(device: torch.device) -> AbstractContextManager[object]:
    """Makes `device` the current one, which kernels are launched on; threads do not inherit that."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class Arrival:
    """Copies of `tensors` on their way to the host; they may be overwritten on the device once this is made."""

    def __init__(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        self._copies = [
            torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=is_cuda).copy_(tensor, non_blocking=True)
            for tensor in tensors
        ]
        self._event = make_event(device)
        self._event.record()

    def wait(self) -> list[npt.NDArray[Any]]:
        """The arrays, once they are there. Raises RuntimeError where the device failed."""
        self._event.synchronize()
        return [copy.numpy() for copy in self._copies]
