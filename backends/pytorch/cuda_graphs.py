"""CUDA graphs: captures what a function queues on the device, to be queued again in one call.

All graphs share one pool of memory, since only one of them runs at a time and what it leaves is taken before the next.
"""

from collections.abc import Callable

import torch

from backends.pytorch.program import Values

__all__ = ["CUDAGraphs"]


class CUDAGraphs:
    """A `Capture` of one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], Values]) -> "_CUDAGraph":
        """Runs `compute` once as it is, which compiles kernels and takes workspaces, and once to capture it."""
        with torch.cuda.device(self._device):
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                compute()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                values = compute()
        return _CUDAGraph(graph, values)


class _CUDAGraph:
    def __init__(self, graph: torch.cuda.CUDAGraph, values: Values) -> None:
        self._graph = graph
        self._values = values

    def replay(self) -> Values:
        self._graph.replay()
        return self._values
