"""The quantized product's kernel: the contract's values bit for bit, and a row's result is its own."""

import ctypes
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.panel_linear import PANEL, STEP, in_panels

Float32Array = npt.NDArray[np.float32]
Int8Array = npt.NDArray[np.int8]
Order = Literal["rows", "panels"]
orders = pytest.mark.parametrize("order", ["rows", "panels"])


def contract(x: Float32Array, weight: Int8Array, weight_scale: Float32Array) -> Float32Array:
    """export/quantized_linear.py's contract, line by line."""
    largest = np.maximum(np.abs(x).max(1, initial=0), np.float32(1e-30))
    scale = largest * np.float32(1 / 127)
    quantized = np.rint(x / scale[:, None]).astype(np.float64)
    assert np.abs(quantized).max(initial=0) <= 127
    sums = quantized @ weight.astype(np.float64).T  # exact
    with np.errstate(over="ignore"):  # infinite here and there
        return sums.astype(np.float32) * weight_scale * scale[:, None]


def run_kernel(
    library: Path,
    x: Float32Array,
    weight: Int8Array,
    weight_scale: Float32Array,
    *,
    order: Order,
    num_threads: int = 2,
) -> Float32Array:
    """weight: in rows; it is given to the kernel in `order`."""
    stored = weight if order == "rows" else np.ascontiguousarray(*in_panels([weight]))
    output = np.full((len(x), len(weight)), np.nan, np.float32)
    function = ctypes.CDLL(str(library)).nanovllm_quantized_linear
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [pointer, size, size, pointer, pointer, size, size, pointer, size]
    addresses = [array.ctypes.data for array in (x, stored, weight_scale, output)]
    is_panels = int(order == "panels")
    failed = function(addresses[0], *x.shape, *addresses[1:3], len(weight), is_panels, addresses[3], num_threads)
    assert not failed
    return output


def random_layer(seed: int, num_rows: int, num_in: int, num_out: int) -> tuple[Float32Array, Int8Array, Float32Array]:
    """Rows of very different sizes, zeros among them, and weights that use the whole range."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_rows, num_in)).astype(np.float32)
    x *= (10.0 ** rng.uniform(-36, 36, (num_rows, 1))).astype(np.float32)
    x[rng.random(num_rows) < 0.1] = 0
    weight = rng.integers(-127, 128, (num_out, num_in), np.int8)
    return x, weight, rng.uniform(0, 0.1, num_out).astype(np.float32)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32 - 1),
    num_rows=st.one_of(st.integers(0, 40), st.integers(180, 210)),
    num_in=st.one_of(st.integers(1, 200), st.sampled_from([256, 896, 4864])),
    num_out=st.one_of(st.integers(1, 200), st.sampled_from([256, 1152])),
)
@orders
def test_it_gives_the_values_of_the_contract_bit_for_bit(
    kernel_library: Path, instruction_set: str, order: Order, seed: int, num_rows: int, num_in: int, num_out: int
) -> None:
    if order == "panels":
        num_in, num_out = num_in + -num_in % STEP, num_out + -num_out % PANEL
    layer = random_layer(seed, num_rows, num_in, num_out)
    np.testing.assert_array_equal(run_kernel(kernel_library, *layer, order=order), contract(*layer))


@pytest.mark.parametrize("num_in", [64, 1008])
@orders
def test_halves_round_to_even(kernel_library: Path, instruction_set: str, order: Order, num_in: int) -> None:
    x = np.resize(np.arange(-254, 255, dtype=np.float32) / 2, num_in)[None]  # scale 1 where the largest is 127
    x[0, 0] = 127
    weight = np.eye(num_in, dtype=np.int8)
    ones = np.ones(num_in, np.float32)
    expected = contract(x, weight, ones)
    np.testing.assert_array_equal(run_kernel(kernel_library, x, weight, ones, order=order), expected)
    np.testing.assert_array_equal(np.rint(expected / expected[0, 0] * 127), np.rint(x))


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1e-31, 1e-30, 1.2e-30, -3.4e38])
@orders
def test_rows_of_zeros_and_of_the_smallest_and_largest_numbers_follow_the_contract(
    kernel_library: Path, instruction_set: str, order: Order, value: float
) -> None:
    x = np.full((3, 72), value, np.float32)
    x[1, 5] = -x[1, 5]
    _, weight, weight_scale = random_layer(1, 3, 72, 32)
    np.testing.assert_array_equal(
        run_kernel(kernel_library, x, weight, weight_scale, order=order), contract(x, weight, weight_scale)
    )


@pytest.mark.parametrize("num_rows", [1, 5, 30])
@orders
def test_sums_do_not_saturate_and_may_pass_2_to_the_31_on_the_way(
    kernel_library: Path, instruction_set: str, order: Order, num_rows: int
) -> None:
    num_in = 132_000  # 255 * 127 * num_in is above 2 ** 31, 127 * 127 * num_in is not
    x = np.ones((num_rows, num_in), np.float32)
    x[0, ::2] = -1
    weight = np.full((PANEL, num_in), 127, np.int8)
    weight[1] = -127
    ones = np.ones(PANEL, np.float32)
    np.testing.assert_array_equal(run_kernel(kernel_library, x, weight, ones, order=order), contract(x, weight, ones))


@orders
def test_the_number_of_threads_changes_nothing(kernel_library: Path, instruction_set: str, order: Order) -> None:
    for num_rows in (1, 9, 33, 400):
        layer = random_layer(num_rows, num_rows, 900, 1008)
        alone = run_kernel(kernel_library, *layer, order=order, num_threads=1)
        for num_threads in (2, 4):
            found = run_kernel(kernel_library, *layer, order=order, num_threads=num_threads)
            np.testing.assert_array_equal(found, alone)


@orders
def test_a_row_alone_equals_the_row_in_a_batch(kernel_library: Path, instruction_set: str, order: Order) -> None:
    x, weight, weight_scale = random_layer(3, 50, 132, 80)
    together = run_kernel(kernel_library, x, weight, weight_scale, order=order)
    for i in range(len(x)):
        alone = run_kernel(kernel_library, x[i : i + 1], weight, weight_scale, order=order)
        np.testing.assert_array_equal(alone[0], together[i])


@orders
def test_rows_that_are_not_finite_leave_the_others_alone(
    kernel_library: Path, instruction_set: str, order: Order
) -> None:
    x, weight, weight_scale = random_layer(4, 30, 100, 48)
    expected = contract(x, weight, weight_scale)
    x[3, 7], x[4, 8], x[5] = np.nan, np.inf, -np.inf
    found = run_kernel(kernel_library, x, weight, weight_scale, order=order)
    others = np.r_[0:3, 6:30]
    np.testing.assert_array_equal(found[others], expected[others])
