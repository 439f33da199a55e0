"""What goes into model.onnx.data, and writing it as a stream.

In: tensors of known shape and functions that yield their values slice by slice. Out: offsets, known before anything is
written, and the file with its SHA-256. Holds no more than one slice in memory. Knows nothing about graphs or models.
"""

import hashlib
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nanovllm.model_info import WeightsFile

__all__ = ["ALIGNMENT", "PlannedTensor", "Slices", "WeightPlan"]

ALIGNMENT = 4096
"""Every tensor starts at a multiple of this many bytes, a memory page, so that a reader can map it (as ONNX advises for
external data: https://github.com/onnx/onnx/blob/main/docs/ExternalData.md)."""

Slices = Callable[[], Iterator[npt.NDArray[Any]]]


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor in the file: offset and num_bytes in bytes; slices yields its values in row-major order, in its dtype or
    one that is turned into it."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    num_bytes: int
    slices: Slices


class WeightPlan:
    """The tensors of one file of weights. They are written in the order in which they were added."""

    def __init__(self, file_name: str) -> None:
        self.file_name = file_name
        self.tensors: dict[str, PlannedTensor] = {}
        self.num_bytes = 0
        self._path: Path | None = None  # of the file while it is written

    def add(self, name: str, shape: tuple[int, ...], slices: Slices, dtype: npt.DTypeLike = np.float32) -> str:
        """Plans a tensor and returns its name. A name that is there already is shared, not added again."""
        if name not in self.tensors:
            offset = -(-self.num_bytes // ALIGNMENT) * ALIGNMENT
            dtype = np.dtype(dtype)
            tensor = PlannedTensor(name, dtype, shape, offset, dtype.itemsize * math.prod(shape), slices)
            self.tensors[name] = tensor
            self.num_bytes = offset + tensor.num_bytes
        return name

    @property
    def num_value_bytes(self) -> int:
        """Bytes of all values, without the padding between tensors."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())

    def write(self, folder: Path, on_progress: Callable[[int], object]) -> WeightsFile:
        """Writes the file into `folder`; on_progress is called with the bytes of each slice written. Raises OSError."""
        digest, position = hashlib.sha256(), 0
        self._path = folder / self.file_name
        with self._path.open("wb") as file:
            for tensor in self.tensors.values():
                file.flush()  # for `written`
                padding = bytes(tensor.offset - position)
                file.write(padding)
                digest.update(padding)
                position = tensor.offset
                for values in tensor.slices():
                    data = _little_endian(values, tensor.dtype)
                    file.write(data)
                    digest.update(data)
                    position += len(data)
                    on_progress(len(data))
                assert position == tensor.offset + tensor.num_bytes, f"{tensor.name}: wrote another size than planned"
        self._path = None
        return WeightsFile(file=self.file_name, num_bytes=position, sha256=digest.hexdigest())

    def written(self, name: str, max_bytes: int) -> Iterator[npt.NDArray[Any]]:
        """A tensor that stands in the file already, in row slices of at most max_bytes, but of at least one row.

        For tensors that are made of it: called from their slices, while the file is being written.
        """
        tensor = self.tensors[name]
        assert self._path is not None, f"{name} is read while nothing is written"
        row_bytes = tensor.num_bytes // tensor.shape[0]
        step = max(1, max_bytes // row_bytes)
        with self._path.open("rb") as file:
            file.seek(tensor.offset)
            for first in range(0, tensor.shape[0], step):
                num_rows = min(step, tensor.shape[0] - first)
                data = np.frombuffer(file.read(num_rows * row_bytes), tensor.dtype.newbyteorder("<"))
                yield data.reshape(num_rows, *tensor.shape[1:])


def _little_endian(values: npt.NDArray[Any], dtype: np.dtype[Any]) -> memoryview:
    """The bytes of `values` in `dtype`, row-major."""
    values = np.ascontiguousarray(values, dtype)
    if sys.byteorder == "big":
        values = values.byteswap()
    return values.reshape(-1).view(np.uint8).data
