"""Weights of a checkpoint as tensors of one device and dtype.

In: weights as an architecture declares them. Out: tensors, those that share an input merged below one another. Files
are read in slices straight into the tensor that stays, so that no second copy of a model ever exists.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from nanovllm.architectures import Weight
from nanovllm.checkpoint import Checkpoint, Tensor

__all__ = ["ColumnPart", "Weights"]

_SLICE_BYTES = 16 * 2**20  # of a tensor while it is read

_MAPPED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class ColumnPart(Weight):
    """Columns (start, stop) of the matrix that `stored` describes, which must be given; `shape` is the part's."""

    columns: tuple[int, int] = (0, 0)


class Weights:
    """Reads from one checkpoint. dtype: of matrices and biases."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self.device = device
        self._checkpoint = checkpoint
        self._tables: dict[str, torch.Tensor] = {}  # by name; those that are whole and not in their file

    def merged(self, weights: Sequence[Weight]) -> torch.Tensor:
        """The weights below one another along their first axis. A new tensor, but for rows of a table that `table` has
        made, such as the head's: these are the table's memory. Raises `CheckpointError`."""
        shared = self._rows_of_table(weights[0]) if len(weights) == 1 else None
        return self._read(weights) if shared is None else shared

    def _read(self, weights: Sequence[Weight]) -> torch.Tensor:
        shape = (sum(weight.shape[0] for weight in weights), *weights[0].shape[1:])
        result = torch.empty(shape, dtype=self.dtype, device=self.device)
        row = 0
        for weight in weights:
            for part in self._slices(weight):
                result[row : row + len(part)].copy_(part)
                row += len(part)
        return result

    def vector(self, weight: Weight, offset: float = 0.0) -> torch.Tensor:
        """The weight plus `offset`, in float32: the gains of norms, which bf16 would round too coarsely."""
        return torch.cat(list(self._slices(weight))).to(self.device, torch.float32) + offset

    def table(self, weight: Weight) -> torch.Tensor:
        """A table of which few rows are read at a time: on a CPU it stays in its file and keeps the file's dtype.

        Elsewhere it may be the head too, so that nobody may write to it.
        """
        if weight.stored is not None:
            return self._read([weight])
        tensor = self._checkpoint.tensor(weight.name, weight.stored_shape)
        mapped = _mapped(tensor) if self.device.type == "cpu" else None
        if mapped is not None:
            return mapped
        if weight.name not in self._tables:
            self._tables[weight.name] = self._read([weight])
        return self._tables[weight.name]

    def _rows_of_table(self, weight: Weight) -> torch.Tensor | None:
        """Those of a table that has been made; None where the weight is not that."""
        table = self._tables.get(weight.name)
        if table is None or weight.stored is None:
            return table
        is_one_range = len(weight.stored.ranges) == 1 and not weight.stored.transposed
        if not is_one_range or isinstance(weight, ColumnPart):
            return None
        return table[slice(*weight.stored.ranges[0])]

    def _slices(self, weight: Weight) -> Iterator[torch.Tensor]:
        """Consecutive rows of the weight, in the file's dtype, taken out of the tensor that holds it; see `Stored`."""
        tensor = self._checkpoint.tensor(weight.name, weight.stored_shape)
        if weight.stored is None:
            yield from _rows(tensor, 0, tensor.shape[0])
            return
        columns = weight.columns if isinstance(weight, ColumnPart) else None
        matrix = replace(tensor, shape=(math.prod(tensor.shape[:-1]), tensor.shape[-1])) if tensor.shape[1:] else tensor
        if weight.stored.transposed:
            turned = torch.cat(list(_rows(matrix, *(columns or (0, matrix.shape[0]))))).t()
            for start, stop in weight.stored.ranges:
                yield turned[start:stop]
            return
        for start, stop in weight.stored.ranges:
            yield from _rows(matrix, start, stop) if columns is None else _column_slices(matrix, start, stop, columns)


def _mapped(tensor: Tensor) -> torch.Tensor | None:
    """The tensor in its file, of which memory takes only what is read; None where it cannot be had so."""
    is_aligned = tensor.offset % tensor.dtype.itemsize == 0
    if not is_aligned or not tensor.file.is_file() or tensor.dtype.name not in _MAPPED:
        return None
    integers = np.dtype(f"<i{tensor.dtype.itemsize}")  # numpy has no bf16
    mapped = np.memmap(tensor.file, integers, mode="c", offset=tensor.offset, shape=tensor.shape)
    return torch.from_numpy(mapped).view(_MAPPED[tensor.dtype.name])


def _column_slices(matrix: Tensor, start: int, stop: int, columns: tuple[int, int]) -> Iterator[torch.Tensor]:
    """Some columns of rows start .. stop. Out of a mapped file only their pages are read."""
    mapped = _mapped(matrix)
    if mapped is not None:
        yield mapped[start:stop, slice(*columns)]
        return
    for part in _rows(matrix, start, stop):
        yield part[:, slice(*columns)]


def _rows(tensor: Tensor, start: int, stop: int) -> Iterator[torch.Tensor]:
    step = max(1, _SLICE_BYTES // (tensor.dtype.itemsize * math.prod(tensor.shape[1:])))
    for first in range(start, stop, step):
        array = tensor.read(first, min(first + step, stop))
        if array.dtype.name == "bfloat16":
            yield torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        elif array.dtype.name in _MAPPED:
            yield torch.from_numpy(array)
        else:
            yield torch.from_numpy(array.astype(np.float32))
