"""Histogram: counts of values by size, as Prometheus reads them.

One event loop writes and reads, so there is no lock; and a value may be counted several times at once. Both make it
cheap enough for every token of hundreds of streams. Knows nothing about what the values are.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence

from prometheus_client.core import HistogramMetricFamily

__all__ = ["Histogram", "bounds_1_2_5", "histogram_family"]


class Histogram:
    """bounds: upper bounds of the buckets, rising, each inclusive; above the last one comes infinity."""

    __slots__ = ("_bounds", "_counts", "_sum", "help", "name")

    def __init__(self, name: str, help: str, bounds: Sequence[float]) -> None:
        self.name = name
        self.help = help
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += count
        self._sum += value * count

    def family(self, labels: Mapping[str, str]) -> HistogramMetricFamily:
        """What a scrape shows."""
        return histogram_family(self.name, self.help, self._bounds, self._counts, self._sum, labels)


def histogram_family(
    name: str, help: str, bounds: Sequence[float], counts: Sequence[int], total: float, labels: Mapping[str, str]
) -> HistogramMetricFamily:
    """counts: between the bounds, one more than these; total: the sum of all values."""
    buckets, num_values = [], 0
    for bound, count in zip((*bounds, float("inf")), counts, strict=True):
        num_values += count
        buckets.append((_bound_text(bound), float(num_values)))
    family = HistogramMetricFamily(name, help, labels=list(labels))
    family.add_metric(list(labels.values()), buckets, total)
    return family


def _bound_text(bound: float) -> str:
    return "+Inf" if bound == float("inf") else repr(float(bound))


def bounds_1_2_5(largest: int) -> list[float]:
    """1, 2, 5, 10, 20, 50, ... as far as they do not pass `largest`."""
    bounds: list[float] = []
    scale = 1
    while scale <= largest:
        bounds += [float(step * scale) for step in (1, 2, 5) if step * scale <= largest]
        scale *= 10
    return bounds
