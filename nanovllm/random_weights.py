"""Random weights for a real shape, without a download: vLLM's load_format "dummy", reproducible.

In: a config.json as a dict, and a seed. Out: what `Checkpoint` gives, with tensors that are drawn when they are read.
Each tensor depends on seed, name and shape alone, so two programs, or an export and a folder of safetensors written
from here, hold the same model. Values are bf16 numbers, as in the checkpoints that they stand for.
"""

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["RandomCheckpoint", "RandomTensor"]

_CHUNK = 2**20  # values drawn from one seed
_STD = 0.02  # of matrices and biases, the usual initializer_range


class RandomCheckpoint:
    """Stands in for a `Checkpoint` whose weights nobody has.

    folder: where config.json was read from, or a name; no file of it is read. generation_config: given or empty.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        seed: int = 0,
        folder: Path | str = "random-weights",
        generation_config: Mapping[str, Any] | None = None,
    ) -> None:
        self.config = dict(config)
        self.generation_config = dict(generation_config or {})
        self.folder = Path(folder)
        self.seed = seed

    def tensor(self, name: str, shape: tuple[int, ...]) -> "RandomTensor":
        """The tensor `name`: every name exists, in every shape."""
        return RandomTensor(name, shape, self.seed)


@dataclass(frozen=True, slots=True)
class RandomTensor:
    """A tensor that is drawn when it is read: the gain of a norm around 1, all else around 0."""

    name: str
    shape: tuple[int, ...]
    seed: int

    def read_float32(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        """Rows start .. stop of the first axis: a new array, float32 (stop - start, *shape[1:])."""
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        row = math.prod(self.shape[1:])
        values = self._draw(start * row, max(stop - start, 0) * row)
        return values.reshape(max(stop - start, 0), *self.shape[1:])

    def slices(self, max_bytes: int) -> Iterator[npt.NDArray[np.float32]]:
        """The whole tensor in consecutive row slices of at most max_bytes each, but of at least one row."""
        rows = max(1, max_bytes // max(1, 4 * math.prod(self.shape[1:])))
        for start in range(0, self.shape[0], rows):
            yield self.read_float32(start, start + rows)

    def _draw(self, first: int, count: int) -> npt.NDArray[np.float32]:
        """Values first .. first + count in row-major order."""
        import ml_dtypes

        values = np.empty(count, np.float32)
        done = 0
        while done < count:
            chunk, offset = divmod(first + done, _CHUNK)
            drawn = self._chunk(chunk, min(_CHUNK, offset + count - done))[offset:]
            values[done : done + len(drawn)] = drawn
            done += len(drawn)
        if self._is_gain:
            values += 1
        return values.astype(ml_dtypes.bfloat16).astype(np.float32)

    def _chunk(self, index: int, count: int) -> npt.NDArray[np.float32]:
        seed = np.random.SeedSequence([self.seed, zlib.crc32(self.name.encode()), index])
        values = np.random.Generator(np.random.SFC64(seed)).standard_normal(count, np.float32)
        values *= _STD
        return values

    @property
    def _is_gain(self) -> bool:
        """Whether the name is that of a norm's weight: the one kind of one-dimensional "weight"."""
        return self.name.endswith(".weight") and len(self.shape) == 1
