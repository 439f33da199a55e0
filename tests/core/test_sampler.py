"""The sampler: which tokens can come out, how often, and that nothing but the request decides."""

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanovllm import SamplingParams
from nanovllm.batch import SAMPLING_ROW, SamplingBatch
from nanovllm.engine.sequence import Sequence
from nanovllm.sampler import sample, uniform

Float32Array = npt.NDArray[np.float32]


def rows_of(*params: SamplingParams) -> npt.NDArray[np.void]:
    """Sampling rows as the engine makes them."""
    made = [Sequence(0, [1], p, max_tokens=1, seed=p.seed or 0).sampling_row for p in params]
    return np.frombuffer(b"".join(made), SAMPLING_ROW)


def tokens_of(logits: Float32Array, sampling: SamplingBatch) -> npt.NDArray[np.int64]:
    """The token of each row, int64 (rows,)."""
    output = sample(logits, sampling, np.arange(len(logits) + 1, dtype=np.int32))
    assert all(len(tokens) == 1 for tokens in output.token_ids)
    assert output.logprobs is None
    return np.array([token for tokens in output.token_ids for token in tokens], np.int64)


def sample_one(logits: Float32Array, params: SamplingParams, position: int = 0) -> int:
    batch = SamplingBatch(rows=rows_of(params), positions=np.array([position], np.int64))
    return int(tokens_of(logits[None], batch)[0])


def sample_many(logits: Float32Array, params: SamplingParams, count: int) -> npt.NDArray[np.int64]:
    """`count` draws from one row of logits, at positions 0, 1, 2 ..."""
    rows = np.repeat(rows_of(params), count)
    return tokens_of(np.tile(logits, (count, 1)), SamplingBatch(rows=rows, positions=np.arange(count, dtype=np.int64)))


def distribution(logits: Float32Array, params: SamplingParams) -> dict[int, float]:
    """Probability of each token that can come out, written down step by step and with Python's floats."""
    top = max(float(x) for x in logits)
    weights = {i: math.exp((float(x) - top) / params.temperature) for i, x in enumerate(logits)}
    if params.min_p > 0:
        weights = {i: w for i, w in weights.items() if w >= float(np.float32(params.min_p))}
    if params.top_k > 0:
        ranked = sorted(weights.values(), reverse=True)
        weights = {i: w for i, w in weights.items() if w >= ranked[min(params.top_k, len(ranked)) - 1]}
    if params.top_p < 1:
        wanted, reached, kept = float(np.float32(params.top_p)) * math.fsum(weights.values()), 0.0, math.inf
        for weight in sorted(weights.values(), reverse=True):
            if reached >= wanted:
                break
            reached, kept = reached + weight, weight
        weights = {i: w for i, w in weights.items() if w >= kept}
    total = math.fsum(weights.values())
    return {i: w / total for i, w in weights.items() if w > 0}


LOGITS = np.random.default_rng(5).normal(0, 2, 40).astype(np.float32)
FILTERS = [
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.5),
    SamplingParams(temperature=3.0),
    SamplingParams(temperature=1.0, top_k=7),
    SamplingParams(temperature=1.5, top_p=0.7),
    SamplingParams(temperature=1.5, min_p=0.1),
    SamplingParams(temperature=2.0, top_k=20, top_p=0.9, min_p=0.05),
    SamplingParams(temperature=1.0, top_k=1),
]


def label(value: object) -> str:
    """A short name of a test's parameter."""
    if not isinstance(value, SamplingParams):
        return str(value)
    return f"T={value.temperature}, k={value.top_k}, p={value.top_p}, min_p={value.min_p}"


@pytest.mark.parametrize("params", FILTERS, ids=label)
def test_frequencies_follow_the_filtered_distribution(params: SamplingParams) -> None:
    count = 20_000
    expected = distribution(LOGITS, params)
    seen = np.bincount(sample_many(LOGITS, params, count), minlength=len(LOGITS))
    assert set(np.flatnonzero(seen)) <= set(expected)
    likely = [i for i, p in expected.items() if p * count >= 10]
    rest = count - sum(int(seen[i]) for i in likely)
    rest_expected = count * (1 - sum(expected[i] for i in likely))
    statistic = sum((seen[i] - count * expected[i]) ** 2 / (count * expected[i]) for i in likely)
    if rest_expected > 5:
        statistic += (rest - rest_expected) ** 2 / rest_expected
    assert statistic < chi_square_bound(len(likely))
    assert len(expected) > 1 or (statistic == 0 and rest == 0)


def chi_square_bound(freedom: int) -> float:
    """What a chi-square of so many degrees exceeds once in 100,000 (Wilson and Hilferty 1931)."""
    z = 4.265
    return freedom * (1 - 2 / (9 * freedom) + z * math.sqrt(2 / (9 * freedom))) ** 3


def test_the_chi_square_test_would_notice_a_wrong_distribution() -> None:
    params, count = FILTERS[0], 20_000
    expected = distribution(LOGITS, SamplingParams(temperature=1.1))
    seen = np.bincount(sample_many(LOGITS, params, count), minlength=len(LOGITS))
    likely = [i for i, p in expected.items() if p * count >= 10]
    statistic = sum((seen[i] - count * expected[i]) ** 2 / (count * expected[i]) for i in likely)
    assert statistic > chi_square_bound(len(likely))


filters = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.25, 1.0, 4.0]),
    top_k=st.sampled_from([-1, 0, 1, 2, 5, 100]),
    top_p=st.sampled_from([0.05, 0.5, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
)
# Multiples of 1/4: ties are common, and no weight lies within rounding of a threshold.
logits_lists = st.lists(st.integers(-12, 12).map(lambda x: x / 4), min_size=1, max_size=12)


@given(logits_lists, filters, st.integers(0, 2**64 - 1))
@settings(max_examples=300)
def test_a_token_is_always_one_that_the_filters_leave(values: list[float], params: SamplingParams, seed: int) -> None:
    logits = np.array(values, np.float32)
    rows = rows_of(params)
    rows = rows.copy()
    rows["seed"] = seed
    allowed = distribution(logits, params)
    for position in range(5):
        batch = SamplingBatch(rows=rows, positions=np.array([position], np.int64))
        assert int(tokens_of(logits[None], batch)[0]) in allowed


@given(logits_lists, filters, st.integers(0, 1000))
@settings(max_examples=300)
def test_the_token_is_the_first_whose_running_sum_passes_the_uniform_number(
    values: list[float], params: SamplingParams, position: int
) -> None:
    logits = np.array(values, np.float32)
    u = float(uniform(np.array([0], np.uint64), np.array([position], np.int64))[0])
    running, expected = 0.0, None
    for token_id, probability in sorted(distribution(logits, params).items()):
        running += probability
        if abs(running - u) < 1e-9:
            return  # too near to call with other sums than the sampler's
        if running > u:
            expected = token_id
            break
    assert sample_one(logits, params, position) == expected


def support(logits: Float32Array, params: SamplingParams) -> set[int]:
    """Tokens that come out in many draws of a nearly uniform distribution."""
    return set(sample_many(logits, params, 4000).tolist())


@pytest.mark.parametrize(
    ("params", "warper", "argument"),
    [
        (SamplingParams(top_k=6), "TopKLogitsWarper", 6),
        (SamplingParams(top_k=1), "TopKLogitsWarper", 1),
        (SamplingParams(top_p=0.6), "TopPLogitsWarper", 0.6),
        (SamplingParams(top_p=0.05), "TopPLogitsWarper", 0.05),
        (SamplingParams(min_p=0.4), "MinPLogitsWarper", 0.4),
        (SamplingParams(min_p=1.0), "MinPLogitsWarper", 1.0),
    ],
    ids=label,
)
def test_the_filters_leave_the_tokens_that_transformers_leaves(
    params: SamplingParams, warper: str, argument: float
) -> None:
    import torch
    from transformers.generation import logits_process

    logits = np.random.default_rng(11).permutation(24).astype(np.float32) / 10  # no ties
    warped = getattr(logits_process, warper)(argument)(None, torch.from_numpy(logits)[None])
    assert support(logits, params) == set(torch.isfinite(warped[0]).nonzero().flatten().tolist())


def test_greedy_takes_the_largest_logit_and_of_equals_the_first() -> None:
    logits = np.array([[0, 3, 1, 3], [-5, -6, -7, -5], [-np.inf, -np.inf, 2, 1]], np.float32)
    batch = SamplingBatch(rows=rows_of(*[SamplingParams(temperature=0)] * 3), positions=np.arange(3))
    assert tokens_of(logits, batch).tolist() == [1, 0, 2]


def test_no_rows_give_no_tokens() -> None:
    batch = SamplingBatch(rows=rows_of()[:0], positions=np.zeros(0, np.int64))
    assert tokens_of(np.zeros((0, 5), np.float32), batch).tolist() == []


@given(st.data())
@settings(max_examples=50)
def test_a_row_gives_the_same_token_whatever_the_other_rows_are(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 6))
    params = [data.draw(filters | st.just(SamplingParams(temperature=0))) for _ in range(count)]
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    logits = rng.normal(0, 2, (count, 9)).astype(np.float32)
    before = logits.copy()
    rows = rows_of(*params).copy()
    rows["seed"] = rng.integers(0, 2**63, count)
    positions = rng.integers(0, 5000, count)
    together = tokens_of(logits, SamplingBatch(rows=rows, positions=positions)).tolist()
    order = data.draw(st.permutations(range(count)))
    shuffled = tokens_of(logits[order], SamplingBatch(rows=rows[order], positions=positions[order])).tolist()
    alone = [
        int(tokens_of(logits[i : i + 1], SamplingBatch(rows=rows[i : i + 1], positions=positions[i : i + 1]))[0])
        for i in range(count)
    ]
    assert together == alone
    assert shuffled == [alone[i] for i in order]
    assert np.array_equal(logits, before)


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-30, 1e-6])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    logits = np.array([1.0, 2.0, 1.5, -np.inf], np.float32)
    assert set(sample_many(logits, SamplingParams(temperature=temperature), 50).tolist()) == {1}


@pytest.mark.parametrize("temperature", [1e9, 1e38, 1e300])
def test_a_huge_temperature_is_uniform_over_what_is_possible(temperature: float) -> None:
    logits = np.array([1.0, 2.0, 1.5, -np.inf, 0.0], np.float32)
    seen = np.bincount(sample_many(logits, SamplingParams(temperature=temperature), 8000), minlength=5)
    assert seen[3] == 0
    assert np.abs(seen[[0, 1, 2, 4]] - 2000).max() < 200


@pytest.mark.parametrize("params", FILTERS, ids=label)
def test_a_token_of_minus_infinity_never_comes_out(params: SamplingParams) -> None:
    logits = np.full(12, -np.inf, np.float32)
    logits[[2, 7]] = [0.0, -0.5]
    assert set(sample_many(logits, params, 500).tolist()) <= {2, 7}


def test_logits_of_any_finite_size_are_fine() -> None:
    logits = np.array([3e38, -3e38, 3e38, 0.0], np.float32)
    assert set(sample_many(logits, SamplingParams(temperature=1.0), 200).tolist()) == {0, 2}


def test_uniform_numbers_are_uniform_over_positions_and_over_seeds() -> None:
    count, bins = 40_000, 50
    seeds, positions = np.arange(count, dtype=np.uint64), np.arange(count, dtype=np.int64)
    for numbers in (uniform(np.full(count, 9, np.uint64), positions), uniform(seeds, np.full(count, 9, np.int64))):
        assert 0 <= numbers.min() < numbers.max() < 1
        seen = np.bincount((numbers * bins).astype(int), minlength=bins)
        assert ((seen - count / bins) ** 2 / (count / bins)).sum() < chi_square_bound(bins - 1)
        assert len(np.unique(numbers)) == count


def test_uniform_numbers_of_neighbours_show_no_correlation() -> None:
    side = 300
    seeds, positions = np.meshgrid(np.arange(side, dtype=np.uint64), np.arange(side), indexing="ij")
    grid = uniform(seeds.ravel(), positions.ravel()).reshape(side, side)
    neighbours = {
        "next position": (grid[:, :-1], grid[:, 1:]),
        "next seed": (grid[:-1], grid[1:]),
        "seed and position": (grid[:-1, 1:], grid[1:, :-1]),  # seed + 1, position - 1: a sum would repeat
        "second position": (grid[:, :-2], grid[:, 2:]),
        "swapped": (grid, grid.T),
    }
    for name, (a, b) in neighbours.items():
        keep = ~np.eye(side, dtype=bool).ravel() if name == "swapped" else slice(None)
        correlation = np.corrcoef(a.ravel()[keep], b.ravel()[keep])[0, 1]
        assert abs(correlation) < 5 / math.sqrt(a.size), name


def test_uniform_takes_any_seed_and_any_position() -> None:
    seeds = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)
    numbers = uniform(seeds, np.array([0, 2**40, 5, 2**62], np.int64))
    assert len(set(numbers.tolist())) == 4
    assert all(0 <= a < 1 for a in numbers)


def test_uniform_numbers_stay_what_they_are_between_versions() -> None:
    """A compiled sampler must give the same: these were computed from the definition with Python's integers."""
    mask = 2**64 - 1

    def mix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    assert mix(0) == 0xE220A8397B1DCDAF  # the first output of SplitMix64 with seed 0, as published
    pairs = list(pairwise([0, 1, 17, 2**33, 12345]))
    expected = [(mix((mix(seed) + position * 0x9E3779B97F4A7C15) & mask) >> 11) / 2**53 for seed, position in pairs]
    seeds, positions = (np.array(column) for column in zip(*pairs, strict=True))
    assert uniform(seeds.astype(np.uint64), positions).tolist() == expected
