"""Graphs of decode steps: which one a step uses, and when one is captured.

A step in which every sequence has one token runs as the graph of the next larger size, filled up with rows that belong
to nobody. Any other step runs without. Knows neither CUDA nor the model: what a graph is, `Capture` says.
"""

from collections.abc import Callable
from typing import Protocol

from backends.pytorch.program import Values
from nanovllm.batch import Batch

__all__ = ["Capture", "DecodeGraphs", "Graph", "graph_sizes"]


class Graph(Protocol):
    """A computation that reads and writes the same memory whenever it runs."""

    def replay(self) -> Values:
        """Queues the computation again. The values are overwritten by the next replay of any graph."""


Capture = Callable[[Callable[[], Values]], Graph]
"""Makes a graph of what a function computes; runs the function at least once."""


def graph_sizes(max_num_seqs: int) -> list[int]:
    """1, 2, 4, every multiple of 8 up to `max_num_seqs`, and that itself, ascending."""
    return sorted({size for size in (1, 2, 4, *range(8, max_num_seqs, 8)) if size < max_num_seqs} | {max_num_seqs})


class DecodeGraphs:
    """sizes: numbers of sequences, ascending."""

    def __init__(self, sizes: list[int], capture: Capture) -> None:
        self.sizes = sizes
        self._capture = capture
        self._graphs: dict[int, Graph] = {}

    def size_for(self, batch: Batch) -> int | None:
        """The size of the graph that `batch` fits; None where it fits none."""
        if batch.num_tokens != batch.num_seqs:
            return None
        return next((size for size in self.sizes if size >= batch.num_seqs), None)

    def run(self, size: int, compute: Callable[[], Values]) -> Values:
        """What `compute` gives for the step of that size that has just been put on the device."""
        if size not in self._graphs:
            self._graphs[size] = self._capture(compute)
        return self._graphs[size].replay()

    def clear(self) -> None:
        """Forgets all graphs: the memory that they read is about to change."""
        self._graphs.clear()
