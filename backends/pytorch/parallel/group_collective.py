"""A `Collective` of torch.distributed, through gloo.

A process group of its own, not torch's default one, so that engines do not meet each other or an application's groups.
"""

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from backends.pytorch.parallel.division import Rank
from backends.pytorch.parallel.rendezvous import open_store

__all__ = ["STUCK_TIMEOUT", "GroupCollective"]

_JOIN_TIMEOUT = timedelta(seconds=60)
STUCK_TIMEOUT = timedelta(minutes=5)  # for a rank that lives, but does not answer; one that ends is noticed at once


class GroupCollective:
    """See `Collective`. rank: of this process. folder: where the ranks find each other, by a file."""

    def __init__(self, rank: Rank, folder: Path) -> None:
        self.rank = rank
        self._folder = folder
        self._group: Any = None  # torch has types for a few of its methods only

    def join(self) -> None:
        self._group = self._open_group(open_store(self.rank, self._folder, _JOIN_TIMEOUT))

    def _open_group(self, store: Any) -> Any:
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        options._timeout = STUCK_TIMEOUT
        return dist.ProcessGroupGloo(store, self.rank.number, self.rank.size, options)

    def all_reduce(self, x: Tensor) -> Tensor:
        x, options = x.contiguous(), dist.AllreduceOptions()
        options.asyncOp = False  # on a device: on the stream that computes, not beside it
        _wait_for(self._joined().allreduce([x], options))
        return x

    def gather(self, x: Tensor, num_features: int) -> Tensor:
        ranks = [Rank(number, self.rank.size) for number in range(self.rank.size)]
        widths = [last - first for first, last in (rank.share(num_features) for rank in ranks)]
        missing = max(widths) - x.shape[1]
        x = (F.pad(x, (0, missing)) if missing else x).contiguous()  # parts of one size are all that groups gather
        parts = [] if self.rank.number else [torch.empty_like(x) for _ in ranks]
        options = dist.GatherOptions()
        options.rootRank, options.asyncOp = 0, False
        _wait_for(self._joined().gather([parts] if parts else [], [x], options))
        if not parts:
            return x.new_empty(0, num_features)
        return torch.cat([part[:, :width] for part, width in zip(parts, widths, strict=True)], 1)

    def broadcast(self, x: Tensor) -> Tensor:
        x, options = x.contiguous(), dist.BroadcastOptions()
        options.rootRank, options.asyncOp = 0, False
        _wait_for(self._joined().broadcast([x], options))
        return x

    def abort(self) -> None:
        """Nothing to do: gloo notices a rank that has ended."""

    def leave(self) -> None:
        self._group = None

    def _joined(self) -> Any:
        assert self._group is not None, "the rank has not joined the others"
        return self._group


def _wait_for(work: Any) -> None:
    """What a call gave back: nothing, with NCCL, where it has been queued on the stream that computes."""
    if work is not None:
        work.wait()
