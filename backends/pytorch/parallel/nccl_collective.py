"""A `Collective` of CUDA devices, through NCCL: what `GroupCollective` does, in a group that works on devices.

Calls are queued on the current stream and nothing is waited for on the host, so that a CUDA graph can capture them. No
test of this project has run it yet: those that need no device run the other group.

A rank that ends leaves the others' devices waiting for it for ever, which only ending the communicator ends. That call
may itself wait until graphs that hold its kernels are gone, so it has a thread to itself.
"""

import os
import threading
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from backends.pytorch.arrivals import as_current, wait_for
from backends.pytorch.parallel.division import Rank
from backends.pytorch.parallel.group_collective import STUCK_TIMEOUT, GroupCollective

__all__ = ["NcclCollective"]

_ABORT_S = 10.0  # that `leave` waits for the end of the communicator
_ON_ERRORS = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
_ONLY_CLEAN_UP = "2"  # torch would otherwise end the process, and the engine in it could tell nobody


class NcclCollective(GroupCollective):
    """device: of this rank, which no other rank has."""

    def __init__(self, rank: Rank, folder: Path, device: torch.device) -> None:
        super().__init__(rank, folder)
        self._device = device
        self._aborting: threading.Thread | None = None

    def join(self) -> None:
        """Adds up a number as well, which connects the devices: later there may be no store to do that through."""
        with as_current(self._device):
            super().join()
            self.all_reduce(torch.ones(1, device=self._device))
            wait_for(self._device)

    def _open_group(self, store: Any) -> Any:
        os.environ.setdefault(_ON_ERRORS, _ONLY_CLEAN_UP)
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = STUCK_TIMEOUT
        return dist.ProcessGroupNCCL(store, self.rank.number, self.rank.size, options)

    def abort(self) -> None:
        if self._group is not None and self._aborting is None:
            self._aborting = threading.Thread(target=self._group.abort, name="nanovllm-abort", daemon=True)
            self._aborting.start()

    def leave(self) -> None:
        """The graphs that hold this rank's calls have to be gone."""
        self.abort()
        if self._aborting is not None:
            self._aborting.join(_ABORT_S)
            if self._aborting.is_alive():
                return  # to drop the group would wait as well
        super().leave()
