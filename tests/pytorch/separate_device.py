"""A program: steps of device runners on a device that is not there, whose tensors have sizes and places but no numbers.

    python separate_device.py DTYPE FOLDER ...      of checkpoints

Whatever needs a number on the host raises, and so does an operation on tensors of both; the launching of the kernels
runs up to where Triton would come in, which is not needed. What a graph will capture is watched operation by
operation. One line a checkpoint is printed, as JSON: how many operations of torch run inside of the graph of a decode
step and how many are queued beside it, and all launches of kernels. A process of its own, since torch keeps the
device's type for good.
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from backends.pytorch.device_runner import DeviceRunner
from backends.pytorch.load import DeviceParts, load_device_runner
from backends.pytorch.program import Values
from backends.pytorch.triton_attention import TritonAttention
from backends.pytorch.triton_kernels.device_code import DeviceCode
from nanovllm.batch import Batch, LogitsEdits
from nanovllm.checkpoint import Checkpoint
from tests.pytorch.device_driver import LIMITS, Sequences, sampling_row

NAME = "far"
FAR = NAME, 0
NEEDS_A_NUMBER = {
    "_local_scalar_dense", "_unique2", "bincount", "equal", "is_nonzero", "item", "masked_select", "multinomial",
    "nonzero", "randperm", "unique_consecutive", "unique_dim",
}  # fmt: skip
"""Operations that wait for the device, or draw random numbers where the host counts them."""


class Backend:
    """What torch asks a kind of device for. As long as it is not available, torch makes no memory there."""

    def is_available(self) -> bool:
        return False

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1


class Kernel:
    """Takes the launches of a kernel."""

    num_launches = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(type(size) is int and size > 0 for size in grid), grid
        return self._launch

    def _launch(self, *arguments: object, **constants: object) -> None:
        Kernel.num_launches += 1
        assert places_of(arguments) == {FAR}
        assert not any(isinstance(constant, Tensor) for constant in constants.values())


def places_of(values: Iterable[object]) -> set[tuple[str, int | None]]:
    """Where tensors lie; numbers that torch wraps as tensors of the host go to a device with the launch."""
    tensors = [value for value in tree_leaves(values) if isinstance(value, Tensor)]
    return {(x.device.type, x.device.index) for x in tensors if x.device.type != "cpu" or x.dim()}


def has_mask(values: Iterable[object]) -> bool:
    """A mask as an index is turned into numbers of rows, and how many these are is asked of the device."""
    return any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in tree_leaves(values))


class Watch(TorchDispatchMode):
    """Counts operations of the device. crossing: those that take or give tensors of the host as well, or need a number.
    on_host: those on tensors of the host alone."""

    def __init__(self) -> None:
        super().__init__()
        self.num_operations = 0
        self.crossing: list[str] = []
        self.on_host: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name, places = func.overloadpacket.__name__, places_of([args, kwargs, result])
        self.num_operations += FAR in places and name != "device"  # of a fake tensor, it is asked this way
        if FAR not in places:
            self.on_host.append(name)
        elif name in NEEDS_A_NUMBER or len(places) > 1 or (name.startswith("index") and has_mask(args)):
            self.crossing.append(name)
        return result


class WatchedGraph:
    """Stands in for a CUDA graph: computes once, as a capture does, under watch."""

    num_operations = 0

    def __init__(self, compute: Callable[[], Values]) -> None:
        with Watch() as watch:
            self._values = compute()
        assert not watch.crossing, f"a graph cannot hold {watch.crossing}"
        assert not watch.on_host, f"a graph would not repeat {watch.on_host}"
        WatchedGraph.num_operations = watch.num_operations

    def replay(self) -> Values:
        return self._values


class Received:
    """Stands in for an `Arrival`: zeros, of the sizes of what was sent: token ids, and logits of other rows."""

    def __init__(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        assert places_of(tensors) == {FAR}
        assert [x.dtype for x in tensors] == [torch.int64, torch.float32]
        self._arrays = [np.zeros(x.shape, str(x.dtype).removeprefix("torch.")) for x in tensors]

    def wait(self) -> list[np.ndarray[Any, Any]]:
        return self._arrays


class HostMemory:
    """Stands in for what `on_host` gives, where numbers are written."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        self._array = np.empty(shape, str(dtype).removeprefix("torch."))

    def numpy(self) -> np.ndarray[Any, Any]:
        return self._array

    def __getitem__(self, span: slice) -> Tensor:
        with unset_fake_temporarily():
            return torch.from_numpy(self._array[span])


def submit(runner: DeviceRunner, batch: Batch, *, kept: Sequence[str] = ()) -> int:
    """How many operations a step queues beside its graph. kept: such as bring over what the host sampled before."""
    with Watch() as watch:
        runner.submit(batch)
    assert watch.crossing == [*kept, "copy_"], watch.crossing
    return watch.num_operations


def run(folder: Path, dtype: str) -> dict[str, object]:
    parts = DeviceParts(make_attention=partial(TritonAttention, num_processors=132), capture=WatchedGraph)
    device = torch.device(*FAR)
    runner = load_device_runner(Checkpoint(folder), device, parts, name="model", dtype=dtype, limits=LIMITS)
    rows = [
        sampling_row(),
        sampling_row(temperature=1),
        sampling_row(temperature=1, top_p=0.9, min_p=0.1),
        sampling_row(temperature=1, top_k=5, top_p=0.9),
        sampling_row(),
    ]
    steps = Sequences(np.concatenate(rows), edits={4: LogitsEdits(banned=np.arange(5))})
    runner.allocate_kv_cache(steps.total_blocks, steps.block_size)
    submit(runner, steps.step({0: [1, 2, 3], 1: [4], 2: [5, 6], 3: [7]}))
    submit(runner, steps.step({i: [-1] for i in range(4)}))
    submit(runner, steps.step({0: [-1], 4: [1, 2], 1: [-1]}))
    submit(runner, steps.step({0: [-1]}), kept=["to", "to"])
    num_beside = submit(runner, steps.step({0: [-1]}))
    runner.close()
    counts = {"in_graph": WatchedGraph.num_operations, "launches": Kernel.num_launches, "beside": num_beside}
    return {"model": folder.name, **counts}


def main() -> None:
    _setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    kernels = DeviceCode(Kernel(), Kernel(), Kernel())
    with pytest.MonkeyPatch.context() as patch:
        for launcher in ("kv_store", "paged_attention"):
            module = import_module(f"backends.pytorch.triton_kernels.{launcher}")
            patch.setattr(module, "device_code", lambda: kernels)
        patch.setattr("backends.pytorch.step_tensors.on_host", HostMemory)
        patch.setattr("backends.pytorch.device_runner.Arrival", Received)
        dtype, *folders = sys.argv[1:]
        for folder in map(Path, folders):
            with FakeTensorMode(allow_non_fake_inputs=True):
                print(json.dumps(run(folder, dtype)), flush=True)


if __name__ == "__main__":
    main()
