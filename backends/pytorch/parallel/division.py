"""How a model is divided among processes.

In: layers and sizes of the whole model, and which process asks. Out: that process's part of them. Heads of attention
stay whole; other features are cut into parts that differ by one at most. Knows no tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from backends.pytorch.weights import ColumnPart
from nanovllm.architectures import GatedMLP, Geometry, Linear, Stored, Weight
from nanovllm.errors import ConfigError

__all__ = ["Rank", "column_part", "expert_part", "geometry_part", "row_part"]

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Rank:
    """One of `size` processes; number 0 is the engine's."""

    number: int
    size: int

    def share(self, total: int) -> Range:
        """This rank's part of 0 .. total, (start, stop). The parts of all ranks lie one after the other."""
        return self.number * total // self.size, (self.number + 1) * total // self.size

    def heads(self, total: int) -> Range:
        """This rank's part of `total` heads; where there are fewer heads than ranks, several ranks have the same one.

        Raises `ConfigError` where the one number is no multiple of the other.
        """
        if total % self.size == 0:
            return self.share(total)
        if self.size % total == 0:
            head = self.number * total // self.size
            return head, head + 1
        raise ConfigError(
            f"tensor_parallel_size is {self.size}, and the model has {total} heads of keys and values; one must be a "
            "multiple of the other. Choose another tensor_parallel_size."
        )


def geometry_part(geometry: Geometry, rank: Rank) -> Geometry:
    """The sizes of a rank's part. Raises `ConfigError` where the heads cannot be divided."""
    if geometry.num_heads % rank.size:
        raise ConfigError(
            f"tensor_parallel_size is {rank.size}, and the model has {geometry.num_heads} heads; they must be a "
            "multiple of it. Choose another tensor_parallel_size."
        )
    first, last = rank.heads(geometry.num_kv_heads)
    return replace(geometry, num_heads=geometry.num_heads // rank.size, num_kv_heads=last - first)


def column_part(layer: Linear, rank: Rank) -> Linear:
    """The layer with this rank's part of the outputs."""
    size = layer.weight.shape[0]
    if layer.heads is None:
        rows, heads = rank.share(size), None
    else:
        first, last = rank.heads(layer.heads)
        head_dim = size // layer.heads
        rows, heads = (first * head_dim, last * head_dim), last - first
    return Linear(_rows(layer.weight, rows), None if layer.bias is None else _rows(layer.bias, rows), heads)


def row_part(layer: Linear, rank: Rank) -> Linear:
    """The layer on this rank's part of the inputs. The bias, which is added once, is rank 0's."""
    num_rows, num_columns = layer.weight.shape
    columns = rank.share(num_columns)
    stored = layer.weight.stored or Stored(layer.weight.shape, ((0, num_rows),))
    weight = ColumnPart(layer.weight.name, (num_rows, columns[1] - columns[0]), stored, columns)
    return Linear(weight, layer.bias if rank.number == 0 else None)


def expert_part(expert: GatedMLP, rank: Rank) -> GatedMLP:
    """The expert with this rank's part of its inner features."""
    return GatedMLP(
        gate=column_part(expert.gate, rank), up=column_part(expert.up, rank), down=row_part(expert.down, rank)
    )


def _rows(weight: Weight, rows: Range) -> Weight:
    """Rows of a weight that may itself be rows of a tensor."""
    stored = weight.stored or Stored(weight.shape, ((0, weight.shape[0]),))
    ranges = _within(stored.ranges, rows)
    return Weight(weight.name, (rows[1] - rows[0], *weight.shape[1:]), replace(stored, ranges=ranges))


def _within(ranges: Sequence[Range], part: Range) -> tuple[Range, ...]:
    """What remains of `ranges`, laid one after the other, where only places part[0] .. part[1] are kept."""
    result, place = [], 0
    for start, stop in ranges:
        first, last = max(part[0] - place, 0), min(part[1] - place, stop - start)
        if first < last:
            result.append((start + first, start + last))
        place += stop - start
    return tuple(result)
