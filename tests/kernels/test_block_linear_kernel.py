"""The block product's kernel: the contract's values bit for bit, and a row's result is its own."""

import ctypes
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.quantize import BLOCK, num_blocks

Float32Array = npt.NDArray[np.float32]
BITS = (4, 8)


@dataclass(frozen=True)
class Layer:
    """weight: the integers as they are stored, before two of 4 bits are put into a byte, (num_out, blocks, BLOCK)."""

    x: Float32Array
    weight: npt.NDArray[np.uint8]
    scale: Float32Array
    bias: Float32Array | None
    bits: int

    def contract(self) -> Float32Array:
        """export/block_linear.py's contract, line by line."""
        blocks = self.weight.shape[1]
        x = np.pad(self.x, ((0, 0), (0, blocks * BLOCK - self.x.shape[1]))).reshape(len(self.x), blocks, BLOCK)
        largest = np.maximum(np.abs(x).max(2, initial=0), np.float32(1e-30))
        scale = largest * np.float32(1 / 127)
        quantized = np.rint(x / scale[..., None]).astype(np.float64)
        assert np.abs(quantized).max(initial=0) <= 127
        weight = self.weight.astype(np.float64) - 2 ** (self.bits - 1)
        output = np.zeros((len(x), len(weight)), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # infinite here and there
            for block in range(blocks):
                sums = (quantized[:, block] @ weight[:, block].T).astype(np.float32)  # of exact sums
                output += sums * (self.scale[:, block] * scale[:, block, None])
            return output if self.bias is None else output + self.bias

    def run(self, library: Path, num_threads: int = 2) -> Float32Array:
        output = np.full((len(self.x), len(self.weight)), np.nan, np.float32)
        function = ctypes.CDLL(str(library)).nanovllm_block_linear
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        function.argtypes = [pointer, size, size, pointer, pointer, pointer, size, ctypes.c_int, pointer, size]
        packed = self.weight if self.bits == 8 else self.weight[..., 0::2] | self.weight[..., 1::2] << np.uint8(4)
        packed = np.ascontiguousarray(packed)
        bias = None if self.bias is None else self.bias.ctypes.data
        addresses = [array.ctypes.data for array in (self.x, packed, self.scale, output)]
        failed = function(
            addresses[0], *self.x.shape, *addresses[1:3], bias, len(self.weight), self.bits, addresses[3], num_threads
        )
        assert not failed
        return output


def random_layer(seed: int, bits: int, num_rows: int, num_in: int, num_out: int) -> Layer:
    """Rows and blocks of very different sizes, zeros among them, weights of the whole range, with a bias or not."""
    rng = np.random.default_rng(seed)
    blocks = num_blocks(num_in)
    x = rng.standard_normal((num_rows, num_in)).astype(np.float32)
    x *= (10.0 ** rng.uniform(-36, 30, (num_rows, 1))).astype(np.float32)
    for block in range(blocks):
        x[rng.random(num_rows) < 0.1, block * BLOCK : (block + 1) * BLOCK] *= rng.choice([0, 1e-3, 1e3])
    weight = rng.integers(0, 2**bits, (num_out, blocks, BLOCK), np.uint8)
    scale = rng.uniform(-0.1, 0.1, (num_out, blocks)).astype(np.float32)
    bias = rng.standard_normal(num_out).astype(np.float32) if seed % 2 else None
    return Layer(x, weight, scale, bias, bits)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32 - 1),
    bits=st.sampled_from(BITS),
    num_rows=st.one_of(st.integers(0, 40), st.integers(180, 210)),
    num_in=st.one_of(st.integers(1, 300), st.sampled_from([512, 896, 4864])),
    num_out=st.one_of(st.integers(1, 200), st.sampled_from([256, 1152])),
)
def test_it_gives_the_values_of_the_contract_bit_for_bit(
    kernel_library: Path, instruction_set: str, seed: int, bits: int, num_rows: int, num_in: int, num_out: int
) -> None:
    layer = random_layer(seed, bits, num_rows, num_in, num_out)
    np.testing.assert_array_equal(layer.run(kernel_library), layer.contract())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("num_rows", [1, 5, 30])
def test_sums_do_not_saturate(kernel_library: Path, instruction_set: str, bits: int, num_rows: int) -> None:
    x = np.ones((num_rows, 3 * BLOCK), np.float32)
    x[0, ::2] = -1
    weight = np.full((5, 3, BLOCK), 2**bits - 1, np.uint8)
    weight[1:3], weight[3, :, ::2] = 0, 0
    layer = Layer(x, weight, np.ones((5, 3), np.float32), None, bits)
    np.testing.assert_array_equal(layer.run(kernel_library), layer.contract())


@pytest.mark.parametrize("bits", BITS)
def test_halves_round_to_even(kernel_library: Path, instruction_set: str, bits: int) -> None:
    x = np.resize(np.arange(-254, 255, dtype=np.float32) / 2, 6 * BLOCK)[None].copy()
    x[0, ::BLOCK] = 127  # so that the scale is 1
    zero = 2 ** (bits - 1)
    weight = np.full((6 * BLOCK, 6, BLOCK), zero, np.uint8)
    weight.reshape(6 * BLOCK, 6 * BLOCK)[np.diag_indices(6 * BLOCK)] = zero + 1
    layer = Layer(x, weight, np.ones((6 * BLOCK, 6), np.float32), None, bits)
    found = layer.run(kernel_library)
    np.testing.assert_array_equal(found, layer.contract())
    np.testing.assert_array_equal(np.rint(found / found[0, 0] * 127), np.rint(x))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1e-31, 1e-30, 1.2e-30, -3.4e38])
def test_blocks_of_zeros_and_of_the_smallest_and_largest_numbers_follow_the_contract(
    kernel_library: Path, instruction_set: str, value: float, bits: int
) -> None:
    layer = random_layer(1, bits, 3, 200, 21)
    x = np.full((3, 200), value, np.float32)
    x[1, 5] = -x[1, 5]
    layer = replace(layer, x=x)
    np.testing.assert_array_equal(layer.run(kernel_library), layer.contract())


@pytest.mark.parametrize("bits", BITS)
def test_the_number_of_threads_changes_nothing(kernel_library: Path, instruction_set: str, bits: int) -> None:
    for num_rows in (1, 9, 33, 400):
        layer = random_layer(num_rows, bits, num_rows, 900, 1000)
        alone = layer.run(kernel_library, num_threads=1)
        for num_threads in (2, 4):
            np.testing.assert_array_equal(layer.run(kernel_library, num_threads), alone)


@pytest.mark.parametrize("bits", BITS)
def test_a_row_alone_and_among_few_equals_the_row_in_a_batch(
    kernel_library: Path, instruction_set: str, bits: int
) -> None:
    layer = random_layer(3, bits, 50, 300, 77)
    together = layer.run(kernel_library)
    for size in (1, 5):
        for i in range(0, len(layer.x), size):
            few = replace(layer, x=layer.x[i : i + size])
            np.testing.assert_array_equal(few.run(kernel_library), together[i : i + size])


@pytest.mark.parametrize("bits", BITS)
def test_rows_that_are_not_finite_leave_the_others_alone(kernel_library: Path, instruction_set: str, bits: int) -> None:
    layer = random_layer(4, bits, 30, 200, 40)
    expected = layer.contract()
    layer.x[3, 7], layer.x[4, 8], layer.x[5] = np.nan, np.inf, -np.inf
    others = np.r_[0:3, 6:30]
    np.testing.assert_array_equal(layer.run(kernel_library)[others], expected[others])
