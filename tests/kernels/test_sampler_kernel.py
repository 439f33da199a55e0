"""The compiled sampler: the reference's tokens, for every shape of logits and every filter."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.ort.kernels.sampler import CompiledSampler
from nanovllm.batch import SAMPLING_ROW
from nanovllm.sampler import draw

Float32Array = npt.NDArray[np.float32]
Rows = npt.NDArray[np.void]

NUM_DRAWS = 100_000  # in all shapes together, for each instruction set
VOCAB_SIZES = (1, 2, 7, 33, 1000, 1025, 4097, 5119, 9000, 30_000)


def flat(rng: np.random.Generator, shape: tuple[int, int]) -> Float32Array:
    return (rng.standard_normal(shape) * rng.choice([0.01, 0.3, 1, 2.5])).astype(np.float32)


def peaked(rng: np.random.Generator, shape: tuple[int, int]) -> Float32Array:
    logits = rng.standard_normal(shape) * 2.5
    logits[np.arange(shape[0]), rng.integers(shape[1], size=shape[0])] += rng.uniform(5, 25)
    return logits.astype(np.float32)


def masked(rng: np.random.Generator, shape: tuple[int, int]) -> Float32Array:
    """Most tokens are not allowed."""
    logits = rng.standard_normal(shape) * 3
    logits[rng.random(shape) < rng.choice([0.3, 0.9, 0.999])] = -np.inf
    logits[:, rng.integers(shape[1])] = 1
    return logits.astype(np.float32)


def tied(rng: np.random.Generator, shape: tuple[int, int]) -> Float32Array:
    """Few different logits."""
    steps = rng.choice([1, 4, 30])
    return (np.round(rng.standard_normal(shape) * steps) / rng.choice([1, 4, 8])).astype(np.float32)


def equal(rng: np.random.Generator, shape: tuple[int, int]) -> Float32Array:
    return np.full(shape, rng.choice([0, -5.5, 1e20]), np.float32)


def descending(rng: np.random.Generator, shape: tuple[int, int]) -> Float32Array:
    """The likeliest tokens first, as in many vocabularies."""
    return np.asarray(-np.sort(-rng.standard_normal(shape) * 3, axis=1), np.float32)


def zipfian(rng: np.random.Generator, shape: tuple[int, int]) -> Float32Array:
    ranks = np.log1p(np.arange(shape[1]))
    return (rng.standard_normal(shape) / 2 - rng.choice([0.8, 1.1, 2]) * ranks).astype(np.float32)


def padded(rng: np.random.Generator, shape: tuple[int, int]) -> Float32Array:
    """The last tokens are no tokens."""
    logits = flat(rng, shape)
    logits[:, 1 + shape[1] * 9 // 10 :] = np.finfo(np.float32).min
    return logits


KINDS: list[Callable[[np.random.Generator, tuple[int, int]], Float32Array]] = [
    flat, peaked, masked, tied, equal, descending, zipfian, padded,
]  # fmt: skip


def random_rows(rng: np.random.Generator, count: int) -> Rows:
    rows = np.zeros(count, SAMPLING_ROW)
    rows["temperature"] = rng.choice([0, 0.01, 0.3, 0.8, 1, 2, 50], count)
    rows["top_k"] = rng.choice([0, 0, 0, 1, 5, 50, 1000, 100_000], count)
    rows["top_p"] = rng.choice([1, 0.01, 0.3, 0.5, 0.9, 0.95, 0.999], count)
    rows["min_p"] = rng.choice([0, 0, 0, 0.001, 0.05, 0.5, 1], count)
    return rows


def one_row(**parameters: float) -> Rows:
    row = np.zeros(1, SAMPLING_ROW)
    row["top_p"] = 1
    for name, value in parameters.items():
        row[name] = value
    return row


@pytest.fixture
def sampler(kernel_library: Path) -> CompiledSampler:
    return CompiledSampler(ctypes.CDLL(str(kernel_library)), num_threads=2)


def test_its_tokens_are_the_references_in_100_000_draws(sampler: CompiledSampler, instruction_set: str) -> None:
    rng = np.random.default_rng(7)
    num_draws = 0
    while num_draws < NUM_DRAWS:
        vocab_size = int(rng.choice(VOCAB_SIZES))
        num_rows = max(1, min(512, 120_000 // vocab_size))
        for kind in KINDS:
            logits, rows, uniforms = kind(rng, (num_rows, vocab_size)), random_rows(rng, num_rows), rng.random(num_rows)
            found, expected = sampler.draw(logits, rows, uniforms), draw(logits, rows, uniforms)
            different = np.flatnonzero(found != expected)
            assert not len(different), (kind.__name__, vocab_size, rows[different], uniforms[different])
            num_draws += num_rows


@pytest.mark.parametrize("kind", KINDS)
def test_its_tokens_are_the_references_for_a_large_vocabulary(
    sampler: CompiledSampler, instruction_set: str, kind: Callable[..., Float32Array]
) -> None:
    rng = np.random.default_rng(8)
    logits, rows, uniforms = kind(rng, (12, 151_936)), random_rows(rng, 12), rng.random(12)
    np.testing.assert_array_equal(sampler.draw(logits, rows, uniforms), draw(logits, rows, uniforms))


LOGITS = st.floats(width=32, allow_nan=False, max_value=2.0**100) | st.integers(-3, 3)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    logits=st.lists(LOGITS, min_size=1, max_size=50),
    temperature=st.floats(0, 2, width=32) | st.sampled_from([1e-40, 1e30]),
    top_k=st.integers(0, 60),
    top_p=st.floats(0, 1, width=32),
    min_p=st.floats(0, 1, width=32) | st.just(0.0),
    position=st.integers(1, 2**20 - 1),
)
def test_hostile_numbers_give_the_references_tokens(
    sampler: CompiledSampler,
    instruction_set: str,
    logits: list[float],
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    position: int,
) -> None:
    row = one_row(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    values, uniforms = np.array([logits], np.float32), np.array([position * 2.0**-20 + 2.0**-25])
    np.testing.assert_array_equal(sampler.draw(values, row, uniforms), draw(values, row, uniforms))


@pytest.mark.parametrize("vocab_size", [1, 5, 15, 16, 64, 65, 4096, 4097, 10_000])
def test_greedy_rows_are_numpys_argmax(sampler: CompiledSampler, instruction_set: str, vocab_size: int) -> None:
    rng = np.random.default_rng(vocab_size)
    logits = rng.integers(-4, 5, (300, vocab_size)).astype(np.float32)  # with ties
    logits[rng.random(logits.shape) < 0.5] = -np.inf
    logits[:20] = -np.inf
    logits[20:40, rng.integers(vocab_size)] = np.inf
    logits[40:80][rng.random((40, vocab_size)) < 0.01] = np.nan
    logits[logits == 0] *= -1  # zeros of either sign are equal
    rows = np.repeat(one_row(temperature=0), len(logits))
    np.testing.assert_array_equal(sampler.draw(logits, rows, np.zeros(len(logits))), logits.argmax(1))


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_rows_without_a_finite_maximum_give_the_references_token(
    sampler: CompiledSampler, instruction_set: str, odd: float
) -> None:
    logits = np.random.default_rng(2).standard_normal((3, 100)).astype(np.float32)
    logits[0, 7], logits[1, [7, 90]], logits[2] = odd, odd, odd
    rows, uniforms = np.repeat(one_row(temperature=1, top_p=0.9, top_k=50), 3), np.full(3, 0.5)
    np.testing.assert_array_equal(sampler.draw(logits, rows, uniforms), draw(logits, rows, uniforms))


@pytest.mark.parametrize("kind", [flat, peaked, tied])
@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-53])
def test_the_ends_of_the_unit_interval_give_the_ends_of_what_is_left(
    sampler: CompiledSampler, instruction_set: str, kind: Callable[..., Float32Array], uniform: float
) -> None:
    logits = np.repeat(kind(np.random.default_rng(3), (1, 20_000)), 2, axis=0)
    rows = np.repeat(one_row(temperature=1, top_p=0.5), 2)
    found = sampler.draw(logits, rows, np.array([uniform, 0.5]))
    assert found[0] == draw(logits[:1], rows[:1], np.array([uniform]))[0]


def test_it_writes_to_nothing_and_takes_what_is_not_contiguous(sampler: CompiledSampler) -> None:
    rng = np.random.default_rng(4)
    logits, rows, uniforms = flat(rng, (40, 600)), random_rows(rng, 40), rng.random(40)
    for array in (logits, rows, uniforms):
        array.flags.writeable = False
    found = sampler.draw(logits[::2, 1:], rows[::2], uniforms[::2])
    np.testing.assert_array_equal(found, draw(logits[::2, 1:].copy(), rows[::2].copy(), uniforms[::2].copy()))


def test_no_rows_give_no_tokens(sampler: CompiledSampler) -> None:
    found = sampler.draw(np.zeros((0, 10), np.float32), np.zeros(0, SAMPLING_ROW), np.zeros(0))
    assert found.dtype == np.int64
    assert found.shape == (0,)


def test_the_number_of_threads_changes_nothing(kernel_library: Path, instruction_set: str) -> None:
    rng = np.random.default_rng(5)
    logits, rows, uniforms = flat(rng, (60, 20_000)), random_rows(rng, 60), rng.random(60)
    library = ctypes.CDLL(str(kernel_library))
    alone = CompiledSampler(library, 1).draw(logits, rows, uniforms)
    for num_threads in (2, 4, 100):
        np.testing.assert_array_equal(CompiledSampler(library, num_threads).draw(logits, rows, uniforms), alone)
