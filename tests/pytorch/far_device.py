"""A device that is not there: its tensors have sizes and a place, but no numbers, and its kernels are only launched.

Whatever needs a number on the host raises, and so does an operation on tensors of both. For programs of their own,
since torch keeps the kind of device for good.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from backends.pytorch.triton_kernels.device_code import DeviceCode

__all__ = ["FAR", "Kernel", "far_device", "places_of"]

FAR = "far", 0


class Backend:
    """What torch asks a kind of device for. As long as it is not available, torch makes no memory there."""

    def is_available(self) -> bool:
        return False

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1


class Kernel:
    """Takes the launches of a kernel. variants: the constants that it was launched with, for each of which it would be
    compiled."""

    def __init__(self) -> None:
        self.num_launches = 0
        self.variants: set[tuple[tuple[str, object], ...]] = set()

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(type(size) is int and size > 0 for size in grid), grid
        return self._launch

    def _launch(self, *arguments: object, **constants: object) -> None:
        assert places_of(arguments) == {FAR}
        assert not any(isinstance(constant, Tensor) for constant in constants.values())
        self.num_launches += 1
        self.variants.add(tuple(sorted(constants.items())))


def places_of(values: Iterable[object]) -> set[tuple[str, int | None]]:
    """Where tensors lie; numbers that torch wraps as tensors of the host go to a device with the launch."""
    tensors = [value for value in tree_leaves(values) if isinstance(value, Tensor)]
    return {(x.device.type, x.device.index) for x in tensors if x.device.type != "cpu" or x.dim()}


class HostMemory:
    """Stands in for what `on_host` gives, where numbers are written."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        self._array = np.empty(shape, str(dtype).removeprefix("torch."))

    def numpy(self) -> np.ndarray[Any, Any]:
        return self._array

    def __getitem__(self, span: slice) -> Tensor:
        with unset_fake_temporarily():
            return torch.from_numpy(self._array[span])


class Received:
    """Stands in for an `Arrival`: zeros, of the sizes of what was sent: token ids, and logits of other rows."""

    def __init__(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        assert places_of(tensors) == {FAR}
        assert [x.dtype for x in tensors] == [torch.int64, torch.float32]
        self._arrays = [np.zeros(x.shape, str(x.dtype).removeprefix("torch.")) for x in tensors]

    def wait(self) -> list[np.ndarray[Any, Any]]:
        return self._arrays


@contextmanager
def far_device() -> Iterator[tuple[torch.device, DeviceCode]]:
    """The device, where all that is computed within is done, and its kernels. Once a process."""
    _setup_privateuseone_for_python_backend(FAR[0], backend_module=Backend())
    kernels = DeviceCode(*(Kernel() for _ in DeviceCode._fields))
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True):
        for launcher in ("gate", "kv_store", "norm", "paged_attention", "sampling"):
            module = import_module(f"backends.pytorch.triton_kernels.{launcher}")
            patch.setattr(module, "device_code", lambda: kernels)
        patch.setattr("backends.pytorch.step_tensors.on_host", HostMemory)
        patch.setattr("backends.pytorch.device_runner.Arrival", Received)
        yield torch.device(*FAR), kernels
