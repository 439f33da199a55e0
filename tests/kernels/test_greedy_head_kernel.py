"""The greedy head's kernel: the arg-max of the logits, by way of the sketch or not, whatever the table."""

from pathlib import Path

import numpy as np
import pytest
from greedy_table import Table, random_rows, random_table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

LAWS = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
NUM_ROWS = st.one_of(st.integers(0, 6), st.sampled_from([9, 10, 40, 300]))
NUM_IN = st.one_of(st.integers(1, 300), st.sampled_from([896, 1152]))
SEEDS = st.integers(0, 2**32 - 1)


@LAWS
@given(seed=SEEDS, num_rows=NUM_ROWS, num_in=NUM_IN, num_out=st.one_of(st.integers(1, 200), st.sampled_from([3000])))
def test_ids_are_the_arg_max_of_the_logits_with_and_without_a_sketch(
    kernel_library: Path, instruction_set: str, seed: int, num_rows: int, num_in: int, num_out: int
) -> None:
    rng = np.random.default_rng(seed)
    table, x = random_table(rng, num_out, num_in), random_rows(rng, num_rows, num_in)
    expected = table.logits(x).argmax(1)
    for sketch in (True, False):
        np.testing.assert_array_equal(table.greedy_ids(kernel_library, x, sketch=sketch), expected)


@LAWS
@given(seed=SEEDS, num_rows=st.integers(1, 4), num_in=st.sampled_from([7, 64, 200, 896]))
def test_of_equal_and_nearly_equal_rows_the_largest_and_then_the_lowest_wins(
    kernel_library: Path, instruction_set: str, seed: int, num_rows: int, num_in: int
) -> None:
    rng = np.random.default_rng(seed)
    table, x = random_table(rng, 2500, num_in), random_rows(rng, num_rows, num_in)
    top = table.logits(x).argmax(1)
    places = rng.integers(0, 2500, (num_rows, 20))
    for row, some in zip(top, places, strict=True):
        table.weight[some], table.scale[some] = table.weight[row], table.scale[row]
        near = some[::2]
        table.weight[near, rng.integers(0, num_in, len(near))] += rng.integers(-1, 2, len(near)).astype(np.int8)
        table.scale[some[::3]] *= 1 + np.float32(2**-23)
    np.testing.assert_array_equal(table.greedy_ids(kernel_library, x), table.logits(x).argmax(1))


def adversarial_tables(rng: np.random.Generator, num_out: int, num_in: int) -> dict[str, Table]:
    ones = np.ones(num_out, np.float32)
    outlier = rng.integers(-2, 3, (num_out, num_in), np.int8)
    outlier[:, num_in // 2] = 127
    base = rng.integers(-127, 128, num_in, np.int8)
    family = np.clip(base + rng.integers(-1, 2, (num_out, num_in)), -127, 127).astype(np.int8)
    errors = np.full(
        (num_out, num_in), 8, np.int8
    )  # all numbers of a row round to the same side where they round alike
    errors[:, ::128] = 127
    errors[np.arange(num_out), rng.integers(1, num_in, num_out)] += 1
    return {
        "zeros": Table(np.zeros((num_out, num_in), np.int8), ones),
        "all alike": Table(np.tile(base, (num_out, 1)), ones),
        "nearly all alike": Table(family, ones),
        "an outlying column": Table(outlier, ones),
        "rounding to one side": Table(errors, ones),
        "one row far above": Table(random_table(rng, num_out, num_in).weight, np.where(ones.cumsum() == 77, 9, ones)),
        "negative logits": Table(-np.abs(outlier) - 1, ones),
        "tiny scales": Table(outlier, ones * np.float32(1e-30)),
        "large scales": Table(outlier, ones * np.float32(1e30)),
    }


@pytest.mark.parametrize("kind", adversarial_tables(np.random.default_rng(0), 80, 80))
@pytest.mark.parametrize("num_in", [130, 896])
def test_tables_of_which_a_sketch_tells_little_give_the_same_ids(
    kernel_library: Path, instruction_set: str, kind: str, num_in: int
) -> None:
    rng = np.random.default_rng(num_in)
    table = adversarial_tables(rng, 4000, num_in)[kind]
    rows = [np.ones((1, num_in)), -np.ones((1, num_in)), rng.standard_normal((2, num_in)), table.weight[77:79]]
    for x in rows:
        x = x.astype(np.float32)
        np.testing.assert_array_equal(table.greedy_ids(kernel_library, x), table.logits(x).argmax(1))


def test_neither_threads_nor_other_rows_nor_instructions_change_an_id(
    kernel_library: Path, instruction_set: str
) -> None:
    rng = np.random.default_rng(3)
    table, x = random_table(rng, 5000, 896), random_rows(rng, 30, 896)
    together = table.greedy_ids(kernel_library, x)
    for num_threads in (1, 3, 4):
        np.testing.assert_array_equal(table.greedy_ids(kernel_library, x, num_threads=num_threads), together)
        for i in range(0, 30, 4):
            found = table.greedy_ids(kernel_library, x[i : i + 4], num_threads=num_threads)
            np.testing.assert_array_equal(found, together[i : i + 4])


def test_rows_that_are_not_finite_get_an_index_and_leave_the_others_alone(
    kernel_library: Path, instruction_set: str
) -> None:
    rng = np.random.default_rng(4)
    table = random_table(rng, 3000, 200)
    for num_rows in (4, 30):
        x = rng.standard_normal((num_rows, 200)).astype(np.float32)
        expected = table.logits(x).argmax(1)
        x[0, 7], x[1, 8], x[2] = np.nan, np.inf, -np.inf
        found = table.greedy_ids(kernel_library, x)
        assert ((found >= 0) & (found < 3000)).all()
        np.testing.assert_array_equal(found[3:], expected[3:])
