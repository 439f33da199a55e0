"""CUDA graphs: captures what a function queues on the device, to be queued again in one call.

All graphs share one pool of memory, since only one of them runs at a time and what it leaves is taken before the next.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch

from backends.pytorch.program import Values

__all__ = ["CUDAGraphs"]


class CUDAGraphs:
    """A `Capture` of one device, whose graphs are dropped together.

    It has a stream to itself, on which functions run before they are captured, too. cuBLAS keeps a workspace of 32 MiB
    for every stream, and a captured product keeps its address: a stream for each graph would take one each, a stream on
    which only captures happen would place it in the graphs' pool, and where others capture on the same stream, torch
    2.12 and later take the workspace away when a graph of theirs is gone (pytorch #193402).
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._newest: Callable[[], _CUDAGraph | None] = lambda: None

    def __call__(self, compute: Callable[[], Values]) -> "_CUDAGraph":
        """Runs `compute` once as it is, which compiles kernels and takes workspaces, and once to capture it."""
        with torch.cuda.device(self._device):
            before, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
            self._stream.wait_stream(before)
            with torch.cuda.stream(self._stream):  # around the capture too, which does not go back where it fails
                compute()
                with torch.cuda.graph(graph, pool=self._pool(), stream=self._stream, capture_error_mode="thread_local"):
                    values = compute()
            before.wait_stream(self._stream)
        captured = _CUDAGraph(graph, values)
        self._newest = weakref.ref(captured)
        return captured

    def _pool(self) -> Any:
        """The pool of the graphs that live; a new one where none does, since torch ends a pool with its last graph and
        then fails where it is named once more while anything lies in it (vllm #28426)."""
        newest = self._newest()
        return None if newest is None else newest.pool()


class _CUDAGraph:
    def __init__(self, graph: torch.cuda.CUDAGraph, values: Values) -> None:
        self._graph = graph
        self._values = values

    def replay(self) -> Values:
        self._graph.replay()
        return self._values

    def pool(self) -> Any:
        """What `torch.cuda.graph` takes to capture another graph into the same memory."""
        return self._graph.pool()
