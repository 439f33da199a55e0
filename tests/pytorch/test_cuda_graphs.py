"""How graphs are captured: on one stream of their own, into one pool as long as any of them lives, then into another.

torch.cuda is stood in for, with the rules of its allocator that captures have to keep.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backends.pytorch.cuda_graphs import CUDAGraphs
from backends.pytorch.decode_graphs import DecodeGraphs
from backends.pytorch.program import Values


class Device:
    """What torch.cuda does for captures. A pool ends with its last graph; to name it again is an error inside torch as
    long as anything lies in it, such as cuBLAS's workspace where the first product of a stream was captured."""

    def __init__(self) -> None:
        self.streams: list[Any] = []
        self.current: Any = "default"
        self.capturing: int | None = None  # a pool
        self.num_graphs: dict[int, int] = {}  # by pool
        self.workspaces: dict[Any, int | None] = {}  # by stream: the pool that it lies in, if any

    def Stream(self, device: object = None) -> "Stream":
        self.streams.append(Stream())
        return self.streams[-1]

    def current_stream(self) -> "Stream":
        return Stream()

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        yield

    def graph_pool_handle(self) -> int:
        return -2

    def CUDAGraph(self) -> "Graph":
        return Graph(self)

    @contextmanager
    def graph(
        self, graph: "Graph", *, pool: int | None = None, stream: Any = "shared", capture_error_mode: str
    ) -> Iterator[None]:
        pool = len(self.num_graphs) if pool is None else pool
        assert self.num_graphs.get(pool, 1) > 0, "use_count > 0 INTERNAL ASSERT FAILED"
        self.num_graphs[pool] = self.num_graphs.get(pool, 0) + 1
        graph.number, self.capturing = pool, pool
        before, self.current = self.current, stream
        yield  # where it fails, torch ends the capture by another error, before it goes back to the stream of before
        self.current, self.capturing = before, None

    def multiply(self) -> Values:
        """A product, whose workspace lies where it was first needed on a stream."""
        self.workspaces.setdefault(self.current, self.capturing)
        return {}


class Stream:
    def wait_stream(self, other: Any) -> None:
        """Everything has happened."""


class Graph:
    def __init__(self, device: Device) -> None:
        self.number = -1
        self._device = device

    def __del__(self) -> None:
        if self.number != -1:
            self._device.num_graphs[self.number] -= 1

    def pool(self) -> int:
        return self.number

    def replay(self) -> None:
        """Computes nothing."""


@contextmanager
def device_and_graphs() -> Iterator[tuple[Device, DecodeGraphs]]:
    device = Device()
    names = ("Stream", "current_stream", "stream", "device", "CUDAGraph", "graph", "graph_pool_handle")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(torch.cuda, name, getattr(device, name))
        yield device, DecodeGraphs([1, 2, 3], CUDAGraphs(torch.device("cuda", 0)))


ROUNDS = st.lists(st.lists(st.sampled_from([1, 2, 3]), max_size=5), min_size=1, max_size=4)


@given(rounds=ROUNDS)
def test_graphs_that_live_share_a_pool_and_one_that_has_ended_is_not_named_again(rounds: list[list[int]]) -> None:
    """Each round's graphs are dropped before the next one, as where the KV cache is allocated anew."""
    with device_and_graphs() as (device, graphs):
        for sizes in rounds:
            for size in sizes:
                graphs.run(size, device.multiply)
            assert sum(device.num_graphs.values()) == len(set(sizes))
            assert sum(count > 0 for count in device.num_graphs.values()) == bool(sizes), "they share a pool"
            graphs.clear()
            assert sum(device.num_graphs.values()) == 0


def test_a_capture_that_fails_leaves_later_steps_on_the_stream_of_earlier_ones() -> None:
    with device_and_graphs() as (device, graphs):

        def fail() -> Values:
            if device.capturing is not None:
                raise RuntimeError("operation not permitted when stream is capturing")
            return {}

        with pytest.raises(RuntimeError, match="not permitted"):
            graphs.run(1, fail)
        assert device.current == "default"


def test_what_is_captured_ran_before_on_the_same_stream_so_that_no_workspace_lies_in_the_pool() -> None:
    with device_and_graphs() as (device, graphs):
        for size in (3, 2, 1):
            graphs.run(size, device.multiply)
    assert list(device.workspaces.values()) == [None]
    assert len(device.streams) == 1
