"""The compiled sampler: what `nanovllm.sampler.draw` gives, from the kernel library.

In: logits, sampling rows, uniform numbers. Out: token ids, the reference's up to the rounding of its sums. Knows
nothing about where the library is built and whether it is wanted.
"""

from ctypes import CDLL, c_int, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nanovllm.batch import SAMPLING_ROW
from nanovllm.errors import BackendError

__all__ = ["CompiledSampler"]


@dataclass(frozen=True, slots=True)
class CompiledSampler:
    """`draw` on `num_threads` threads, at least 1, which live for one call. library: the loaded kernel library."""

    library: CDLL
    num_threads: int

    @classmethod
    def load(cls, path: Path, num_threads: int) -> "CompiledSampler":
        """path: of a kernel library that can be loaded."""
        return cls(CDLL(str(path)), num_threads)

    def draw(
        self, logits: npt.NDArray[np.float32], rows: npt.NDArray[np.void], uniforms: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.int64]:
        """Token ids, int64 (R,), for logits float32 (R, V), rows SAMPLING_ROW (R,) and uniforms float64 (R,) in [0, 1).

        No argument is written to; what is not contiguous or of another type is copied first. A random row without a
        finite largest logit gets the last id that holds the largest. Raises `BackendError` where memory runs out.
        """
        num_rows, vocab_size = logits.shape
        assert vocab_size > 0
        assert rows.shape == uniforms.shape == (num_rows,)
        assert rows.dtype == SAMPLING_ROW
        logits = np.ascontiguousarray(logits, np.float32)
        rows = np.ascontiguousarray(rows)
        uniforms = np.ascontiguousarray(uniforms, np.float64)
        token_ids = np.empty(num_rows, np.int64)
        function = self.library.nanovllm_draw
        function.argtypes = [c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_int64]
        function.restype = c_int
        if function(
            logits.ctypes.data, num_rows, vocab_size, rows.ctypes.data, uniforms.ctypes.data, token_ids.ctypes.data,
            self.num_threads,
        ):  # fmt: skip
            raise BackendError(
                f"The sampler found no memory for {num_rows} rows of {vocab_size} logits on {self.num_threads} "
                "threads. Lower max_num_seqs or the number of threads."
            )
        return token_ids
