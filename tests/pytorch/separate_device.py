"""A program: steps of device runners on a device that is not there (`far_device`).

    python separate_device.py DTYPE FOLDER ...      of checkpoints

Steps run up to what they send to the host, under watch: nothing may need a number or mix memory of host and device, but
for the copy that brings the step, and what a graph captures must be such that it can. One line a checkpoint is printed,
as JSON: how many operations of torch run inside of the graph of a decode step and how many are queued beside it, and
all launches of kernels.
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from backends.pytorch.device_runner import DeviceRunner
from backends.pytorch.load import load_device_runner, triton_parts
from backends.pytorch.program import Values
from nanovllm.batch import Batch, LogitsEdits
from nanovllm.checkpoint import Checkpoint
from tests.pytorch.device_driver import LIMITS, Sequences, sampling_row
from tests.pytorch.far_device import FAR, far_device, places_of

NEEDS_A_NUMBER = {
    "_local_scalar_dense", "_unique2", "bincount", "equal", "is_nonzero", "item", "masked_select", "multinomial",
    "nonzero", "randperm", "unique_consecutive", "unique_dim",
}  # fmt: skip
"""Operations that wait for the device, or draw random numbers where the host counts them."""


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


def submit(runner: DeviceRunner, batch: Batch, *, kept: Sequence[str] = ()) -> int:
    """How many operations a step queues beside its graph. kept: such as bring over what the host sampled before."""
    with Watch() as watch:
        runner.submit(batch)
    assert watch.crossing == [*kept, "copy_"], watch.crossing
    return watch.num_operations


def run(folder: Path, dtype: str, device: torch.device) -> dict[str, int]:
    parts = triton_parts(132, capture=WatchedGraph)
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
    return {"in_graph": WatchedGraph.num_operations, "beside": num_beside}


def main() -> None:
    dtype, *folders = sys.argv[1:]
    with far_device() as (device, kernels):
        for folder in map(Path, folders):
            counts = run(folder, dtype, device)
            num_launches = sum(kernel.num_launches for kernel in kernels)
            print(json.dumps({"model": folder.name, "launches": num_launches, **counts}), flush=True)


if __name__ == "__main__":
    main()
