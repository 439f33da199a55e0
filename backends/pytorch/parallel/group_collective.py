"""A `Collective` of torch.distributed, through gloo.

A process group of its own, not torch's default one, so that engines do not meet each other or an application's groups.
"""

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from backends.pytorch.parallel.division import Rank

__all__ = ["GroupCollective"]

_JOIN_TIMEOUT = timedelta(seconds=60)
_STUCK_TIMEOUT = timedelta(minutes=5)  # for a rank that lives, but does not answer; one that ends is noticed at once


class GroupCollective:
    """See `Collective`. rank: of this process. folder: where the ranks find each other, by a file."""

    def __init__(self, rank: Rank, folder: Path) -> None:
        self.rank = rank
        self._rendezvous = folder / "ranks"
        self._group: Any = None  # torch has types for a few of its methods only

    def join(self) -> None:
        store = dist.FileStore(str(self._rendezvous), self.rank.size)  # type: ignore[attr-defined]
        store.set_timeout(_JOIN_TIMEOUT)
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        options._timeout = _STUCK_TIMEOUT
        self._group = dist.ProcessGroupGloo(store, self.rank.number, self.rank.size, options)

    def all_reduce(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        self._joined().allreduce([x]).wait()
        return x

    def gather(self, x: Tensor, num_features: int) -> Tensor:
        group = self._joined()
        if self.rank.number:
            group.send([x.contiguous()], 0, 0).wait()
            return x.new_empty(0, num_features)
        parts = [x]
        for number in range(1, self.rank.size):
            first, last = Rank(number, self.rank.size).share(num_features)
            parts.append(x.new_empty(len(x), last - first))
            group.recv([parts[-1]], number, 0).wait()
        return torch.cat(parts, 1)

    def leave(self) -> None:
        self._group = None

    def _joined(self) -> Any:
        assert self._group is not None, "the rank has not joined the others"
        return self._group
