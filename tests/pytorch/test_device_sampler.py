"""The sampler of devices that bring none of their own gives the tokens of `nanovllm.sampler`."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.pytorch.device_sampler import sample_tokens, sampling_rows
from nanovllm.batch import SAMPLING_ROW
from nanovllm.sampler import draw, uniform

ROW = st.tuples(
    st.sampled_from([0.0, 0.01, 0.7, 1.0, 3.0]),
    st.sampled_from([0, 1, 2, 5, 40, 1000]),
    st.sampled_from([1.0, 0.95, 0.5, 0.1, 1e-6]),
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    st.integers(0, 2**64 - 1),
)


def device_tokens(
    logits: npt.NDArray[np.float32], rows: npt.NDArray[np.void], positions: npt.NDArray[np.int64]
) -> list[int]:
    parameters = torch.from_numpy(sampling_rows(rows, positions))
    return sample_tokens(torch.from_numpy(logits), parameters).tolist()


@given(
    rows=st.lists(ROW, min_size=1, max_size=6),
    vocab_size=st.integers(1, 400),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([0.1, 1.0, 8.0]),
    has_ties=st.booleans(),
)
@settings(max_examples=300)
def test_it_gives_the_tokens_of_the_core(
    rows: list[tuple[float, ...]], vocab_size: int, seed: int, scale: float, has_ties: bool
) -> None:
    random = np.random.default_rng(seed)
    logits = (random.standard_normal((len(rows), vocab_size)) * scale).astype(np.float32)
    if has_ties:
        logits = logits.round()
    table = np.array(rows, SAMPLING_ROW)
    positions = random.integers(0, 1000, len(rows))
    expected = draw(logits, table, uniform(table["seed"], positions))
    assert device_tokens(logits, table, positions) == expected.tolist()


def test_many_rows_of_a_real_vocabulary_agree() -> None:
    """Each with parameters of its own."""
    random = np.random.default_rng(3)
    logits = (random.standard_normal((70, 5000)) * 3).astype(np.float32)
    table = np.zeros(70, SAMPLING_ROW)
    table["temperature"] = random.choice([0, 0.6, 1.0], 70)
    table["top_k"] = random.choice([0, 20], 70)
    table["top_p"] = random.choice([0.8, 1.0], 70)
    table["seed"] = random.integers(0, 2**63, 70)
    positions = np.arange(70)
    assert device_tokens(logits, table, positions) == draw(logits, table, uniform(table["seed"], positions)).tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "row", [[1, np.inf, 2, np.inf, 0], [1, np.nan, 2, 3, 0], [-np.inf] * 5, [-np.inf, 4, -np.inf, 4, -np.inf]]
)
def test_logits_that_are_not_finite_are_treated_alike(row: list[float], temperature: float) -> None:
    logits = np.array([row, [0, 1, 2, 3, 4]], np.float32)
    table = np.zeros(2, SAMPLING_ROW)
    table["temperature"], table["top_p"], table["seed"] = temperature, 0.9, 11
    positions = np.array([5, 6])
    with np.errstate(invalid="ignore"):
        expected = draw(logits, table, uniform(table["seed"], positions))
    assert device_tokens(logits, table, positions) == expected.tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_drawn_from_as_if_it_were_float32(dtype: torch.dtype) -> None:
    random = np.random.default_rng(0)
    logits = torch.from_numpy(random.standard_normal((8, 300)).astype(np.float32)).to(dtype)
    table = np.zeros(8, SAMPLING_ROW)
    table["temperature"], table["top_p"], table["seed"] = 0.8, 0.9, np.arange(8)
    positions = np.arange(8)
    parameters = torch.from_numpy(sampling_rows(table, positions))
    expected = draw(logits.float().numpy(), table, uniform(table["seed"], positions))
    assert sample_tokens(logits, parameters).tolist() == expected.tolist()


def test_logits_stay_as_they_are() -> None:
    logits = torch.randn(3, 50, dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    table = np.zeros(3, SAMPLING_ROW)
    table["temperature"], table["top_k"], table["top_p"], table["min_p"] = 1, 5, 0.9, 0.01
    sample_tokens(logits, torch.from_numpy(sampling_rows(table, np.arange(3))))
    assert torch.equal(logits, before)


def test_no_rows_give_no_tokens() -> None:
    assert device_tokens(np.zeros((0, 7), np.float32), np.zeros(0, SAMPLING_ROW), np.zeros(0, np.int64)) == []
