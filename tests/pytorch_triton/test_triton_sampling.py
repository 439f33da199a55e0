"""The sampler's kernels give the tokens of the definition, which numpy computes."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from backends.pytorch.device_sampler import sampling_rows
from backends.pytorch.triton_kernels import draw_tokens
from nanovllm.batch import SAMPLING_ROW
from nanovllm.sampler import draw, uniform
from tests.sampling.plain import Float32Array, plain_draw, plain_weights

ROUNDING = 1e-12  # of weights and their sums, more than generously
ROW = st.tuples(
    st.sampled_from([0.0, 1e-40, 1e-3, 0.1, 0.7, 1.0, 3.0, 1e9, 3e38]),
    st.sampled_from([0, 0, 1, 2, 3, 7, 50, 2**31 - 1]),
    st.sampled_from([1.0, 1.0, 1 - 2**-24, 0.95, 0.75, 0.5, 0.1, 1e-30]),
    st.sampled_from([0.0, 0.0, 1e-30, 0.01, 0.25, 0.5, 1.0]),
    st.integers(0, 2**64 - 1),
)
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
CHUNKS = st.sampled_from([16, 64])


@st.composite
def logits_tables(draw_from: st.DrawFn, num_rows: int, max_size: int) -> Float32Array:
    """(num_rows, size): peaked and flat, with ties, with impossible tokens, with differences of next to nothing."""
    random = np.random.default_rng(draw_from(st.integers(0, 2**32)))
    size = draw_from(st.integers(1, max_size))
    scale = draw_from(st.sampled_from([0.0, 1e-44, 1e-30, 1e-8, 0.1, 2.0, 2.0, 15.0, 1e30]))
    logits = random.normal(0, 1, (num_rows, size)) * scale
    step = draw_from(st.sampled_from([0.0, 0.0, 0.25, 1.0]))
    if step:
        logits = np.round(logits / step) * step
    logits += draw_from(st.sampled_from([0.0, 0.0, 12.0, -12.0]))
    logits[random.random(logits.shape) < draw_from(st.sampled_from([0.0, 0.0, 0.5, 0.99]))] = -np.inf
    logits[np.arange(num_rows), random.integers(size, size=num_rows)] = draw_from(st.sampled_from([0.0, 3.0, 20.0]))
    return logits.astype(np.float32)


def tokens_of(logits: Tensor, parameters: npt.NDArray[np.float64], chunk: int | None = None) -> list[int]:
    """parameters: on the host."""
    ids = draw_tokens(logits, torch.from_numpy(parameters).to(logits.device), chunk=chunk)
    assert (ids.dtype, ids.shape) == (torch.int64, logits.shape[:1])
    return ids.tolist()


def assert_drawn(ids: list[int], logits: Float32Array, rows: npt.NDArray[np.void], uniforms: npt.ArrayLike) -> None:
    """Each token is the definition's, for that random number or one that rounding does not tell from it."""
    for token_id, x, row, u in zip(ids, logits, rows, np.asarray(uniforms).tolist(), strict=True):
        near = {u, u * (1 - ROUNDING), min(u * (1 + ROUNDING), 1 - 2**-53)}
        assert token_id in {plain_draw(x, row, number) for number in near}, (row, u)


@given(data=st.data(), values=st.lists(ROW, min_size=1, max_size=4), dtype=DTYPES, chunk=CHUNKS)
@settings(max_examples=60)
def test_tokens_are_those_of_the_definition(
    data: st.DataObject,
    values: list[tuple[float, ...]],
    dtype: torch.dtype,
    chunk: int,
    interpreted_or_cuda: torch.device,
) -> None:
    table = data.draw(logits_tables(len(values), 200), "logits")
    logits = torch.from_numpy(table.clip(max=6e4) if dtype == torch.float16 else table).to(dtype)
    rows, positions = np.array(values, SAMPLING_ROW), np.arange(len(values))
    ids = tokens_of(logits.to(interpreted_or_cuda), sampling_rows(rows, positions), chunk)
    assert_drawn(ids, logits.float().numpy(), rows, uniform(rows["seed"], positions))


# Logits that differ where their weights do not: neither threshold may come between them.
@example(table=np.float32([[0.0] * 16 + [-1e-44] * 4]), values=(3e38, 1, 1.0, 0.0, 0))
@example(table=np.float32([[0.0] * 16 + [-1e-44] * 4]), values=(3e38, 0, 0.5, 0.0, 0))
@given(table=logits_tables(1, 24), values=ROW.filter(lambda values: values[0] > 0))
@settings(max_examples=25)
def test_the_middle_of_each_token_s_share_gives_that_token(
    table: Float32Array, values: tuple[float, ...], interpreted_or_cuda: torch.device
) -> None:
    """So exactly those tokens are kept that the definition keeps."""
    row = np.array([values], SAMPLING_ROW)
    weights = plain_weights(table[0], row[0])
    shares = weights / weights.sum()
    kept = np.flatnonzero(shares > ROUNDING)
    parameters = np.repeat(sampling_rows(row, np.zeros(1, np.int64)), len(kept), axis=1)
    parameters[4] = (np.cumsum(shares) - shares / 2)[kept]
    logits = torch.from_numpy(table).to(interpreted_or_cuda).expand(len(kept), -1)
    assert tokens_of(logits, parameters, 16) == kept.tolist()


def test_thresholds_tell_neighbouring_floats_apart(interpreted_or_cuda: torch.device) -> None:
    """Whichever of them is sought: the number that draws the last token that is kept draws each in its turn."""
    table = (np.float32(1).view(np.int32) - np.arange(12, dtype=np.int32)).view(np.float32)[None]
    row = np.array([(1e-3, 0, 1.0, 0.0, 0)], SAMPLING_ROW)
    shares = plain_weights(table[0], row[0])
    shares /= shares.sum()
    logits = torch.from_numpy(table).to(interpreted_or_cuda).expand(24, -1)
    parameters = np.repeat(sampling_rows(row, np.zeros(1, np.int64)), 24, axis=1)
    parameters[1, :12] = np.arange(1, 13)
    parameters[2, 12:] = np.cumsum(shares) - shares / 2
    parameters[4] = 1 - 2**-53
    assert tokens_of(logits, parameters, 4) == [*range(12), *range(12)]


@given(data=st.data(), values=st.lists(ROW, min_size=2, max_size=4), chunk=CHUNKS)
@settings(max_examples=15)
def test_a_row_s_token_does_not_depend_on_the_others(
    data: st.DataObject, values: list[tuple[float, ...]], chunk: int, interpreted_or_cuda: torch.device
) -> None:
    table = data.draw(logits_tables(len(values), 100), "logits")
    logits = torch.from_numpy(table).to(interpreted_or_cuda)
    parameters = sampling_rows(np.array(values, SAMPLING_ROW), np.arange(len(values)))
    together = tokens_of(logits, parameters, chunk)
    for i, token_id in enumerate(together):
        assert tokens_of(logits[[i]], parameters[:, [i]].copy(), chunk) == [token_id]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("size", [5, 40])
def test_logits_that_are_not_finite_are_treated_as_the_core_treats_them(
    temperature: float, size: int, interpreted_or_cuda: torch.device
) -> None:
    """Also in another chunk than the first; NaN has two signs, and the last row is finite."""
    table = np.zeros((8, size), np.float32)
    table[:, :5] = [1, -np.inf, 2, 3, 0]
    table[0, [1, 3]] = np.inf
    table[1, [2, -2]] = np.inf
    table[2, 2] = np.nan
    table[3, [2, -2]] = -np.nan, np.nan
    table[4, [2, -2]] = np.inf, -np.nan
    table[5] = -np.inf
    table[6, 0] = -np.nan
    rows = np.zeros(8, SAMPLING_ROW)
    rows["temperature"], rows["top_p"], rows["seed"] = temperature, 0.9, 11
    with np.errstate(invalid="ignore"):
        expected = draw(table, rows, uniform(rows["seed"], np.arange(8)))
    logits = torch.from_numpy(table).to(interpreted_or_cuda)
    assert tokens_of(logits, sampling_rows(rows, np.arange(8)), 16) == expected.tolist()


def test_greedy_is_the_first_of_the_largest(interpreted_or_cuda: torch.device) -> None:
    """The two zeros are equal, and the chunks of the first and the last row hold its largest twice."""
    table = np.full((4, 50), -1, np.float32)
    table[0, [20, 30, 49]] = 7
    table[1, [3, 9]] = -0.0, 0.0
    table[2, [3, 9]] = 0.0, -0.0
    table[3] = 2
    logits = torch.from_numpy(table).to(interpreted_or_cuda)
    assert tokens_of(logits, np.zeros((5, 4)), 16) == [20, 3, 3, 0]


def test_a_large_vocabulary_in_chunks_of_the_usual_size(interpreted_or_cuda: torch.device) -> None:
    random = np.random.default_rng(3)
    table = (random.standard_normal((6, 9000)) * 3).astype(np.float32)
    rows = np.array(
        [
            (0.8, 0, 1, 0, 1),
            (0.8, 0, 0.95, 0, 2),
            (1, 3, 0.9, 0, 3),
            (1, 20, 0.9, 0, 4),
            (1, 0, 0.9, 0.05, 5),
            (0,) * 5,
        ],
        SAMPLING_ROW,
    )
    ids = tokens_of(torch.from_numpy(table).to(interpreted_or_cuda), sampling_rows(rows, np.arange(6)))
    assert_drawn(ids, table, rows, uniform(rows["seed"], np.arange(6)))


def test_rows_lie_at_any_distance_and_stay_as_they_are(interpreted_or_cuda: torch.device) -> None:
    random = np.random.default_rng(0)
    wide = torch.from_numpy(random.standard_normal((3, 70)).astype(np.float32)).to(interpreted_or_cuda)
    before = wide.clone()
    rows = np.array([(1, 5, 0.9, 0.01, 7)] * 3, SAMPLING_ROW)
    ids = tokens_of(wide[:, 5:45], sampling_rows(rows, np.arange(3)), 16)
    assert_drawn(ids, before[:, 5:45].cpu().numpy(), rows, uniform(rows["seed"], np.arange(3)))
    assert torch.equal(wide, before)


def test_no_rows_give_no_tokens(interpreted_or_cuda: torch.device) -> None:
    assert tokens_of(torch.zeros(0, 7, device=interpreted_or_cuda), np.zeros((5, 0))) == []
