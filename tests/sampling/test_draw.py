"""draw: the plain definition to the bit, and the warpers of transformers up to rounding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process

from nanovllm import SamplingParams
from nanovllm.batch import SAMPLING_ROW
from nanovllm.sampler import draw
from tests.sampling.plain import Float32Array, plain_draw, rows_of

TOP_PS = [1e-30, 0.01, 0.25, 0.5, 0.75, 0.9, 0.95, 0.999, 1 - 2**-24, 1.0]
row_values = st.tuples(
    st.sampled_from([1e-40, 1e-3, 0.1, 0.5, 1.0, 1.7, 30.0, 1e9, 3e38]),
    st.sampled_from([0, 1, 2, 3, 7, 50, 1000, 2**31 - 1]),
    st.sampled_from(TOP_PS),
    st.sampled_from([0.0, 1e-30, 0.01, 0.25, 0.5, 1.0]),
    st.just(0),
)


@st.composite
def logits_rows(draw_from: st.DrawFn) -> Float32Array:
    """Peaked and flat, few and many, with ties and with impossible tokens."""
    randomness = np.random.default_rng(draw_from(st.integers(0, 2**32)))
    count = draw_from(st.integers(1, 40) | st.integers(1000, 9000))
    logits = randomness.normal(0, draw_from(st.sampled_from([0.0, 1e-30, 1e-8, 0.1, 2.0, 15.0, 1e30])), count)
    step = draw_from(st.sampled_from([0.0, 0.25, 1.0]))
    if step:
        logits = np.round(logits / step) * step
    logits[randomness.random(count) < draw_from(st.sampled_from([0.0, 0.0, 0.5, 0.99]))] = -np.inf
    logits[randomness.integers(count)] = draw_from(st.sampled_from([0.0, 3.0, 20.0]))
    return logits.astype(np.float32)


@given(logits_rows(), row_values, st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=4))
@settings(max_examples=250)
def test_a_draw_is_the_plain_definition_s_to_the_bit(
    logits: Float32Array, values: tuple[float, ...], uniforms: list[float]
) -> None:
    rows = np.full(len(uniforms), np.array(values, SAMPLING_ROW))
    u = np.array(uniforms)
    expected = [plain_draw(logits, rows[0], x) for x in uniforms]
    assert draw(np.tile(logits, (len(u), 1)), rows, u).tolist() == expected


@given(logits_rows(), st.sampled_from([0.5, 1.0]), st.sampled_from(TOP_PS), st.data())
@settings(max_examples=100)
def test_at_the_very_edge_between_two_tokens_the_draw_is_still_the_plain_one(
    logits: Float32Array, temperature: float, top_p: float, data: st.DataObject
) -> None:
    """Numbers at which the last bit of a sum decides: what a running sum is of the whole, and its neighbours."""
    row = rows_of(SamplingParams(temperature=temperature, top_p=max(top_p, 1e-3)))
    running = np.cumsum(np.exp((logits.astype(np.float64) - float(logits.max())) / temperature))
    edge = running[data.draw(st.integers(0, len(running) - 1))] / running[-1]
    for u in (np.nextafter(edge, 0), edge, np.nextafter(edge, 1)):
        if 0 <= u < 1:
            assert draw(logits[None], row, np.array([u]))[0] == plain_draw(logits, row[0], float(u))


def test_a_large_vocabulary_is_drawn_from_as_a_small_one_is() -> None:
    randomness = np.random.default_rng(3)
    flat = randomness.normal(0, 2, (4, 151_936)).astype(np.float32)
    peaked = (14 - 2.2 * np.log1p(randomness.permuted(np.tile(np.arange(151_936), (4, 1)), axis=1))).astype(np.float32)
    logits = np.concatenate((flat, peaked))
    for values in [(0.8, 0, 1, 0, 0), (0.8, 0, 0.95, 0, 0), (1.3, 50, 0.9, 0, 0), (1, 20_000, 0.99, 1e-9, 0)]:
        rows, u = np.full(8, np.array(values, SAMPLING_ROW)), randomness.random(8)
        expected = [plain_draw(x, row, number) for x, row, number in zip(logits, rows, u.tolist(), strict=True)]
        assert draw(logits, rows, u).tolist() == expected


def test_greedy_and_random_rows_may_stand_side_by_side() -> None:
    randomness = np.random.default_rng(8)
    logits, u = randomness.normal(0, 1, (6, 50)).astype(np.float32), randomness.random(6)
    rows = rows_of(*[SamplingParams(temperature=t) for t in (0, 1, 0, 2, 0.5, 0)])
    logits.flags.writeable = rows.flags.writeable = u.flags.writeable = False
    assert draw(logits, rows, u).tolist() == [plain_draw(logits[i], rows[i], float(u[i])) for i in range(6)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, np.inf, 2, np.inf, 0], 3), ([-np.inf] * 5, 4), ([1, np.nan, 2, 3, 0], 4), ([np.nan, np.inf, 1, 2, 3], 4)],
)
def test_a_row_without_a_finite_largest_logit_gives_the_last_id_that_holds_the_largest(
    values: list[float], expected: int
) -> None:
    logits = np.array([values], np.float32)
    assert draw(logits, rows_of(SamplingParams(top_p=0.9, top_k=3)), np.array([0.3])).tolist() == [expected]


@given(
    st.integers(0, 2**32),
    st.sampled_from([0.3, 1.0, 2.5]),
    st.sampled_from([0, 1, 5, 60]),
    st.sampled_from([0.1, 0.6, 0.95, 1.0]),
    st.sampled_from([0.0, 0.02, 0.4]),
)
@settings(max_examples=100)
def test_a_draw_inverts_the_distribution_that_the_warpers_of_transformers_leave(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = np.random.default_rng(seed).normal(0, 2, 200).astype(np.float32)
    scores = logits_process.TemperatureLogitsWarper(temperature)(None, torch.from_numpy(logits)[None].double())
    if min_p:
        scores = logits_process.MinPLogitsWarper(min_p)(None, scores)
    if top_k:
        scores = logits_process.TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = logits_process.TopPLogitsWarper(top_p)(None, scores)
    running = scores.softmax(-1)[0].cumsum(-1).numpy()
    rows = rows_of(SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)).repeat(400)
    u = (np.arange(400) + 0.5) / 400
    away_from_edges = np.abs(running[:, None] - u).min(axis=0) > 1e-6
    expected = np.searchsorted(running, u, side="right")
    drawn = draw(np.tile(logits, (400, 1)), rows, u)
    assert away_from_edges.mean() > 0.9
    assert np.array_equal(drawn[away_from_edges], expected[away_from_edges])
