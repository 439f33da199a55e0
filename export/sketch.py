"""Sketches of tables of int8 rows: the same rows in 4 bits, rounded at random.

In: int8 rows. Out: blocks of 4 bits as `export.quantize.quantize_blocks` lays them out, with scales. Knows nothing
about graphs and files. `export.greedy_head` says what a sketch is for, and why it is rounded as it is.
"""

import numpy as np
import numpy.typing as npt

from export.quantize import BLOCK, num_blocks

__all__ = ["sketch_rows"]

Float32Array = npt.NDArray[np.float32]


def sketch_rows(
    integers: npt.NDArray[np.int8], random: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], Float32Array]:
    """The blocks of 4 bits, (rows, blocks, BLOCK / 2), and their scales, (rows, blocks).

    integers: (rows, features). A block's scale is the smallest at which nothing is cut off: mostly an eighth of the
    largest magnitude, which takes the end of the range that has no opposite, so that a scale may be negative. A number
    of u scales is rounded to floor(u + d), d uniform in [0, 1) and drawn anew for each: its mean is u, and it is off by
    less than one.
    """
    rows, num_features = integers.shape
    blocks = num_blocks(num_features)
    padded = np.zeros((rows, blocks * BLOCK), np.float32)
    padded[:, :num_features] = integers
    parts = padded.reshape(rows, blocks, BLOCK)
    high, low = parts.max(-1), -parts.min(-1)
    sizes = np.maximum(np.maximum(high, low) / 8, np.minimum(high, low) / 7).astype(np.float32)
    scales = np.where(high > low, -sizes, sizes)
    factors = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    units = parts * factors[..., None]
    units += random.random(parts.shape, np.float32)
    nibbles = (np.clip(np.floor(units), -8, 7) + 8).astype(np.uint8)
    return nibbles[..., 0::2] | nibbles[..., 1::2] << np.uint8(4), scales
