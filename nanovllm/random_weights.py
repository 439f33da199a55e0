"""Random weights for a real shape, without a download: vLLM's load_format "dummy", reproducible.

In: a config.json as a dict, and a seed. Out: a `Checkpoint` whose tensors are drawn when they are read. Each tensor
depends on seed, name and shape alone, so two programs, or an export and a folder of safetensors written from here,
hold the same model. Values are bf16 numbers, as in the checkpoints that they stand for.
"""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nanovllm.checkpoint import CONFIG_FILE, GENERATION_CONFIG_FILE, Checkpoint, read_json_object
from nanovllm.errors import ConfigError
from nanovllm.known_shapes import KNOWN_SHAPES
from nanovllm.safetensors_file import Tensor

__all__ = ["RandomCheckpoint", "RandomTensor", "random_checkpoint"]

_CHUNK = 2**20  # values drawn from one seed
_STD = 0.02  # of matrices and biases, the usual initializer_range


def random_checkpoint(model: str | Path, seed: int = 0) -> "RandomCheckpoint":
    """Random weights for a folder's config.json or, by hub id, for one of `KNOWN_SHAPES`.

    Raises `ConfigError` where `model` is neither, `CheckpointError` where config.json cannot be read.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        generation = folder / GENERATION_CONFIG_FILE
        return RandomCheckpoint(
            read_json_object(folder / CONFIG_FILE),
            seed=seed,
            folder=folder,
            generation_config=read_json_object(generation) if generation.exists() else None,
        )
    if str(model) not in KNOWN_SHAPES:
        raise ConfigError(
            f"random weights need a shape, and {str(model)!r} is neither a folder with a config.json nor one of "
            f"{', '.join(KNOWN_SHAPES)}."
        )
    return RandomCheckpoint(KNOWN_SHAPES[str(model)], seed=seed, folder=folder)


class RandomCheckpoint(Checkpoint):
    """Stands in for a checkpoint whose weights nobody has: every tensor exists, in every shape.

    folder: where config.json was read from; no weights are looked for in it. generation_config: given or empty.
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
        self.tensors = {}
        self.seed = seed

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> "RandomTensor":
        """The tensor `name` in `shape`, which has to be given."""
        assert shape is not None, "a random tensor has no shape of its own"
        dtype = _bfloat16()
        return RandomTensor(name, dtype, shape, self.folder, 0, dtype.itemsize * math.prod(shape), self.seed)


@dataclass(frozen=True, slots=True)
class RandomTensor(Tensor):
    """A tensor that is drawn when it is read: the gain of a norm around 1, all else around 0."""

    seed: int

    def read(self, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Rows start .. stop of the first axis: a new array, bf16 (stop - start, *shape[1:])."""
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        rows, row = max(stop - start, 0), math.prod(self.shape[1:])
        return self._draw(start * row, rows * row).astype(self.dtype).reshape(rows, *self.shape[1:])

    def _draw(self, first: int, count: int) -> npt.NDArray[np.float32]:
        """Values first .. first + count in row-major order."""
        values = np.empty(count, np.float32)
        done = 0
        while done < count:
            chunk, offset = divmod(first + done, _CHUNK)
            drawn = self._chunk(chunk, min(_CHUNK, offset + count - done))[offset:]
            values[done : done + len(drawn)] = drawn
            done += len(drawn)
        if self._is_gain:
            values += 1
        return values

    def _chunk(self, index: int, count: int) -> npt.NDArray[np.float32]:
        seed = np.random.SeedSequence([self.seed, zlib.crc32(self.name.encode()), index])
        values = np.random.Generator(np.random.SFC64(seed)).standard_normal(count, np.float32)
        values *= _STD
        return values

    @property
    def _is_gain(self) -> bool:
        """Whether the name is that of a norm's weight: the one kind of one-dimensional "weight"."""
        return self.name.endswith(".weight") and len(self.shape) == 1


def _bfloat16() -> np.dtype[Any]:
    import ml_dtypes

    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype
