"""Laws of the quantizers: how far a stored value may be from its own, and what happens at the edges."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.quantize import BLOCK, dequantize_blocks, dequantize_rows, num_blocks, quantize_blocks, quantize_rows

Float32Array = npt.NDArray[np.float32]
ROUNDING = 1e-5  # of the largest value: float32's own


@st.composite
def matrices(draw: st.DrawFn) -> Float32Array:
    """Rows of very different sizes, some of zeros, some with outliers, of any length."""
    rows, features = draw(st.integers(1, 6)), draw(st.integers(1, 3 * BLOCK + 1))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = random.standard_normal((rows, features)) * 10.0 ** draw(st.integers(-20, 30))
    values[random.random((rows, features)) < draw(st.sampled_from([0, 0, 0.5]))] = 0
    values[random.random(rows) < draw(st.sampled_from([0, 0.3]))] = 0
    values[random.integers(rows), random.integers(features)] *= draw(st.sampled_from([1.0, -1.0, 1e6, 0]))
    return values.astype(np.float32)


def blocks_of(values: Float32Array) -> Float32Array:
    """The same values in blocks, the last one padded with zeros: (rows, blocks, BLOCK)."""
    padding = num_blocks(values.shape[1]) * BLOCK - values.shape[1]
    padded: Float32Array = np.pad(values, ((0, 0), (0, padding))).reshape(len(values), -1, BLOCK)
    return padded


@given(matrices())
def test_a_row_of_int8_is_within_half_a_scale(values: Float32Array) -> None:
    integers, scales = quantize_rows(values)
    assert integers.dtype == np.int8
    assert np.abs(integers.astype(int)).max() <= 127
    largest = np.abs(values).max(1, keepdims=True)
    np.testing.assert_allclose(scales[:, None] * 127, largest, rtol=1e-6, atol=1e-29)
    error = np.abs(dequantize_rows(integers, scales) - values.astype(np.float64))
    assert (error <= scales[:, None] / 2 + largest * ROUNDING + 1e-30).all()


@given(matrices())
def test_a_block_of_int8_is_within_half_a_scale(values: Float32Array) -> None:
    integers, scales = quantize_blocks(values, 8)
    assert integers.shape == (len(values), num_blocks(values.shape[1]), BLOCK)
    error = np.abs(blocks_of(dequantize_blocks(integers, scales, values.shape[1])) - blocks_of(values).astype(float))
    largest = np.abs(blocks_of(values)).max(-1, keepdims=True)
    assert (error <= scales[..., None] / 2 + largest * ROUNDING + 1e-30).all()


@given(matrices())
def test_a_block_of_int4_is_within_half_a_scale_or_cut_off(values: Float32Array) -> None:
    integers, scales = quantize_blocks(values, 4)
    assert integers.shape == (len(values), num_blocks(values.shape[1]), BLOCK // 2)
    stored = blocks_of(dequantize_blocks(integers, scales, values.shape[1])).astype(float)
    original, largest = blocks_of(values).astype(float), np.abs(blocks_of(values)).max(-1, keepdims=True)
    within = np.abs(stored - original) <= np.abs(scales[..., None]) / 2 + largest * ROUNDING + 1e-30
    with np.errstate(invalid="ignore", divide="ignore"):
        at_the_end = np.isin(np.rint(stored / scales[..., None].astype(float)), (-8, 7))
    cut_off = at_the_end & (np.abs(stored) < np.abs(original) + 1e-30)
    assert (within | cut_off).all()


@given(matrices())
def test_int4_is_no_worse_than_without_a_search(values: Float32Array) -> None:
    """Against the plain choice of scale: the value of largest magnitude at -8."""
    parts = blocks_of(values).astype(np.float64)
    extreme = np.take_along_axis(parts, np.abs(parts).argmax(-1)[..., None], -1)
    scale = np.where(np.abs(extreme) < 1e-30, 1, extreme / -8)
    plain = np.clip(np.rint(parts / scale), -8, 7) * scale
    stored = blocks_of(dequantize_blocks(*quantize_blocks(values, 4), values.shape[1]))
    squared, plain_squared = (((other - parts) ** 2).sum(-1) for other in (stored, plain))
    assert (squared <= plain_squared * (1 + 1e-3) + 1e-60).all()


@pytest.mark.parametrize("bits", [4, 8])
@given(values=matrices(), cut=st.integers(0, 6))
def test_rows_can_be_quantized_in_slices(bits: int, values: Float32Array, cut: int) -> None:
    cut = min(cut, len(values))
    for quantize in (quantize_rows, lambda part: quantize_blocks(part, bits)):
        whole = quantize(values)
        halves = [quantize(part) for part in (values[:cut], values[cut:]) if len(part)]
        for i in (0, 1):
            np.testing.assert_array_equal(np.concatenate([half[i] for half in halves]), whole[i])


def test_zeros_stay_zeros_with_a_scale_of_zero() -> None:
    zeros = np.zeros((2, 130), np.float32)
    integers, scales = quantize_rows(zeros)
    assert not integers.any()
    assert not scales.any()
    for bits in (4, 8):
        stored, block_scales = quantize_blocks(zeros, bits)
        assert not block_scales.any()
        assert not dequantize_blocks(stored, block_scales, 130).any()


def test_very_large_floats_neither_overflow_nor_warn() -> None:
    largest = 3e38
    values = np.array([[largest, -largest, 0, 1e-38]], np.float32)
    np.testing.assert_allclose(dequantize_rows(*quantize_rows(values)), [[largest, -largest, 0, 0]], rtol=1e-6)
    for bits in (4, 8):
        stored = dequantize_blocks(*quantize_blocks(values, bits), 4)
        np.testing.assert_allclose(stored, [[largest, -largest, 0, 0]], rtol=0.13 if bits == 4 else 1e-6)


def test_what_is_not_finite_shows_in_the_scales() -> None:
    for value in (np.nan, np.inf, -np.inf):
        values = np.ones((2, 130), np.float32)
        values[1, 129] = value
        assert np.isfinite(quantize_rows(values)[1]).tolist() == [True, False]
        for bits in (4, 8):
            scales = quantize_blocks(values, bits)[1]
            assert np.isfinite(scales).tolist() == [[True, True], [True, False]]


def test_two_numbers_of_four_bits_share_a_byte_the_first_in_the_low_half() -> None:
    values = np.zeros((1, BLOCK), np.float32)
    values[0, :4] = [-8, 7, 3, -1]
    integers, scales = quantize_blocks(values, 4)
    assert scales[0, 0] == 1
    assert integers[0, 0, :3].tolist() == [0 | 15 << 4, 11 | 7 << 4, 8 | 8 << 4]
