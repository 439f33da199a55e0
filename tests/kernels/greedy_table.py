"""Tables of int8 rows with their sketches, and the greedy head's kernel on them."""

import ctypes
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from export.sketch import sketch_rows

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Table:
    """weight: int8 (N, K). scale: float32 (N,). The sketch is what the exporter makes of them."""

    weight: npt.NDArray[np.int8]
    scale: Float32Array

    def sketch(self) -> tuple[npt.NDArray[np.uint8], Float32Array, Float32Array]:
        blocks, scales = sketch_rows(self.weight, np.random.default_rng(5))
        scales = scales * self.scale[:, None]
        return blocks, scales, np.abs(scales).max(1)

    def logits(self, x: Float32Array) -> Float32Array:
        """What export/quantized_linear.py's contract says, line by line."""
        largest = np.maximum(np.abs(x).max(1, initial=0), np.float32(1e-30))
        scale = largest * np.float32(1 / 127)
        quantized = np.rint(x / scale[:, None])
        sums = quantized @ self.weight.astype(np.float64).T  # exact
        with np.errstate(over="ignore"):  # infinite here and there
            return sums.astype(np.float32) * self.scale * scale[:, None]

    def greedy_ids(
        self, library: Path, x: Float32Array, *, sketch: bool = True, num_threads: int = 2
    ) -> npt.NDArray[np.int64]:
        """By the kernel."""
        ids = np.full(len(x), -1, np.int64)
        parts = self.sketch() if sketch else (None, None, None)
        function = ctypes.CDLL(str(library)).nanovllm_greedy_head
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        function.argtypes = [pointer, size, size, *[pointer] * 5, size, pointer, size]
        addresses = [None if part is None else part.ctypes.data for part in (self.weight, self.scale, *parts)]
        assert not function(x.ctypes.data, *x.shape, *addresses, len(self.weight), ids.ctypes.data, num_threads)
        return ids


def random_table(rng: np.random.Generator, num_out: int, num_in: int) -> Table:
    """Rows of normally distributed numbers, as `quantize_rows` leaves them, of very different sizes."""
    values = rng.standard_normal((num_out, num_in))
    integers = np.rint(values / np.abs(values).max(1, initial=1e-9, keepdims=True) * 127).astype(np.int8)
    return Table(integers, (10.0 ** rng.uniform(-3, -1, num_out)).astype(np.float32))


def random_rows(rng: np.random.Generator, num_rows: int, num_in: int) -> Float32Array:
    """Rows of very different sizes, zeros among them."""
    x = rng.standard_normal((num_rows, num_in)) * 10.0 ** rng.uniform(-36, 36, (num_rows, 1))
    x[rng.random(num_rows) < 0.1] = 0
    return x.astype(np.float32)
