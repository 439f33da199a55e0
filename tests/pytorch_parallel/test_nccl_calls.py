"""How NCCL is called: nothing that it gives back is relied on, since torch gives nothing back for calls that are queued
on the stream that computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from backends.pytorch.parallel.division import Rank
from backends.pytorch.parallel.nccl_collective import NcclCollective


class QueueingGroup:
    """Stands in for torch's group of NCCL, as the only rank. It queues and returns None, as torch does from 2.8 on
    where `asyncOp` is False."""

    class Options:
        _timeout: Any = None

    def __init__(self, store: Any, rank: int, size: int, options: Options) -> None:
        assert (rank, size) == (0, 1)
        assert options._timeout is not None

    def allreduce(self, tensors: list[Tensor], options: dist.AllreduceOptions) -> None:
        assert not options.asyncOp

    def gather(self, outputs: list[list[Tensor]], inputs: list[Tensor], options: dist.GatherOptions) -> None:
        assert not options.asyncOp
        outputs[0][0].copy_(inputs[0])

    def broadcast(self, tensors: list[Tensor], options: dist.BroadcastOptions) -> None:
        assert not options.asyncOp

    def abort(self) -> None:
        """Nobody waits."""


def test_calls_that_are_queued_and_give_nothing_back_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "ProcessGroupNCCL", QueueingGroup, raising=False)
    collective = NcclCollective(Rank(0, 1), tmp_path, torch.device("cpu"))
    collective.join()
    x = torch.arange(6.0).view(2, 3)
    assert torch.equal(collective.all_reduce(x.clone()), x)
    assert torch.equal(collective.gather(x, 3), x)
    assert torch.equal(collective.broadcast(x.clone()), x)
    collective.leave()
