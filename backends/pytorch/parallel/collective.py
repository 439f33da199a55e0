"""What ranks exchange within a step: sums of partial results, and parts of logits for rank 0.

A process group of its own, not torch's default one, so that engines do not meet each other or an application's groups.
"""

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from backends.pytorch.parallel.division import Rank

__all__ = ["Collective"]

_JOIN_TIMEOUT = timedelta(seconds=60)
_STUCK_TIMEOUT = timedelta(minutes=5)  # for a rank that lives, but does not answer; one that ends is noticed at once


class Collective:
    """rank: of this process. rendezvous: a file, not there yet, in which the ranks find each other."""

    def __init__(self, rank: Rank, rendezvous: Path) -> None:
        self.rank = rank
        self._rendezvous = rendezvous
        self._group: Any = None  # torch has types for a few of its methods only

    def join(self) -> None:
        """Waits for the other ranks. Raises RuntimeError where they do not come."""
        store = dist.FileStore(str(self._rendezvous), self.rank.size)  # type: ignore[attr-defined]
        store.set_timeout(_JOIN_TIMEOUT)
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        options._timeout = _STUCK_TIMEOUT
        self._group = dist.ProcessGroupGloo(store, self.rank.number, self.rank.size, options)

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of all ranks' x, of one shape and dtype; x is given away. All ranks get the same bits.

        Raises RuntimeError where a rank has ended.
        """
        x = x.contiguous()
        self._joined().allreduce([x]).wait()
        return x

    def gather(self, x: Tensor, num_features: int) -> Tensor:
        """Rank 0: the parts of all ranks side by side, (rows, num_features). Elsewhere: no rows of them.

        x: (rows, this rank's share of the features). Raises RuntimeError where a rank has ended.
        """
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
        """May be called more than once, also where the rank has never joined."""
        self._group = None

    def _joined(self) -> Any:
        assert self._group is not None, "the rank has not joined the others"
        return self._group
