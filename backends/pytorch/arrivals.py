"""Waiting for a device: events, and memory of the host that copies go to and come from without anybody waiting.

The one place, beside the graphs and the memory, where kinds of devices differ: on a CPU everything has happened by the
time a call returns, so events there are empty.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Arrival", "StepEvent", "as_current", "make_event", "on_host", "wait_for"]


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


def wait_for(device: torch.device) -> None:
    """Until it has done all that is queued. Raises RuntimeError where it failed."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def on_host(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory of the host, not filled, that the device copies to and from on its own: pinned, where there is one."""
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")


class Arrival:
    """Copies of `tensors` on their way to the host; they may be overwritten on the device once this is made."""

    def __init__(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        self._copies = [
            on_host(tensor.shape, tensor.dtype, device).copy_(tensor, non_blocking=True) for tensor in tensors
        ]
        self._event = make_event(device)
        self._event.record()

    def wait(self) -> list[npt.NDArray[Any]]:
        """The arrays, once they are there. Raises RuntimeError where the device failed."""
        self._event.synchronize()
        return [copy.numpy() for copy in self._copies]
