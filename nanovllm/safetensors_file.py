"""One safetensors file: its header parsed and checked, its tensors read in row slices.

The format (https://github.com/huggingface/safetensors, "Format"): 8 bytes with the header's length N as little-endian
unsigned integer; N bytes of JSON that map a tensor's name to {"dtype", "shape", "data_offsets": [begin, end]}, offsets
counted from the end of the header, and "__metadata__" to strings; then the data, row-major and little-endian. The
library's own numpy reader refuses bf16, so bytes are read here and typed through ml_dtypes.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nanovllm.errors import CheckpointError

__all__ = ["Tensor", "read_header"]

_MAX_HEADER_BYTES = 100_000_000  # the library's own limit


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in a file; nothing of it is in memory until it is read. offset and num_bytes are in bytes."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    file: Path
    offset: int
    num_bytes: int

    def read(self, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Rows start .. stop of the first axis, in the stored dtype (a scalar has none: read it whole).

        Returns a new array, (stop - start, *shape[1:]). Raises `CheckpointError` where the file ends early or cannot
        be read.
        """
        if not self.shape:
            return self._read_at(self.offset, self.num_bytes).reshape(())
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        row_bytes = self.num_bytes // self.shape[0] if self.shape[0] else 0
        rows = max(stop - start, 0)
        return self._read_at(self.offset + start * row_bytes, rows * row_bytes).reshape(rows, *self.shape[1:])

    def read_float32(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        """As `read`, as float32: exact for bf16, fp16 and fp32."""
        return self.read(start, stop).astype(np.float32, copy=False)

    def slices(self, max_bytes: int) -> Iterator[npt.NDArray[np.float32]]:
        """The whole tensor as float32 in consecutive row slices of at most max_bytes each, but of at least one row."""
        if not self.shape:
            yield self.read_float32()
            return
        rows = max(1, max_bytes // max(1, 4 * math.prod(self.shape[1:])))
        for start in range(0, self.shape[0], rows):
            yield self.read_float32(start, start + rows)

    def _read_at(self, offset: int, num_bytes: int) -> npt.NDArray[Any]:
        data = np.empty(num_bytes, np.uint8)
        try:
            with self.file.open("rb", buffering=0) as file:
                file.seek(offset)
                done = 0
                while done < num_bytes and (got := file.readinto(data.data[done:])):
                    done += got
        except OSError as error:
            raise CheckpointError(f"{self.file}: tensor {self.name!r} cannot be read: {error}.") from error
        if done < num_bytes:
            raise CheckpointError(f"{self.file} ends within tensor {self.name!r}. Download or copy the file again.")
        return data.view(self.dtype)


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of the file by name. Raises `CheckpointError` where the header is broken or the file cut short."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                raise CheckpointError(
                    f"{path} is no safetensors file or is cut short: it has {size} bytes, and its header would need "
                    f"{8 + length}. Download or copy the file again."
                )
            header = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: the header is not JSON: {error}. Download or copy the file again.") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is not a JSON object. Download or copy the file again.")
    header.pop("__metadata__", None)
    return {name: _tensor(path, name, entry, 8 + length, size) for name, entry in header.items()}


def _tensor(path: Path, name: str, entry: Any, data_start: int, file_size: int) -> Tensor:
    try:
        dtype = _dtypes()[entry["dtype"]]
        shape = tuple(int(n) for n in entry["shape"])
        begin, end = (int(n) for n in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the header's entry of tensor {name!r} is broken: {entry!r}.") from error
    num_bytes = math.prod(shape) * dtype.itemsize
    if begin < 0 or min(shape, default=0) < 0 or end - begin != num_bytes:
        raise CheckpointError(
            f"{path}: tensor {name!r} of shape {shape} and dtype {entry['dtype']} needs {num_bytes} bytes, but its "
            f"offsets are {begin} to {end}."
        )
    if data_start + end > file_size:
        raise CheckpointError(
            f"{path} is cut short: it has {file_size} bytes, but tensor {name!r} ends at byte {data_start + end}. "
            "Download or copy the file again."
        )
    return Tensor(name, dtype, shape, path, data_start + begin, num_bytes)


@cache
def _dtypes() -> dict[str, np.dtype[Any]]:
    """The format's dtype names that numpy or ml_dtypes can hold."""
    import ml_dtypes

    plain = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2"}
    small = {"I8": "i1", "U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8", "BOOL": "?"}
    scaled = {"BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}
    return {name: np.dtype(code) for name, code in {**plain, **small, **scaled}.items()}
