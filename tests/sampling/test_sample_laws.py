"""sample: rows do not touch each other, arguments are not written to, and few allowed tokens are drawn as among all."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanovllm import BackendError, SamplingParams
from nanovllm.batch import SAMPLING_ROW, LogitsEdits, Penalties, SamplingBatch
from nanovllm.logits_row import edit_row
from nanovllm.sampler import draw, plain_rows, sample, sample_others, uniform
from tests.sampling.plain import Float32Array, Mask, one_each, plain_draw, rows_of, sampling_of

VOCAB_SIZE = 100
GREEDY, RANDOM = SamplingParams(temperature=0), SamplingParams(temperature=1.0, seed=3)


def frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.flags.writeable = False
    return array


@st.composite
def some_edits(choose: st.DrawFn) -> LogitsEdits:
    """Any edits, with masks of a few tokens and of many."""
    ids = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=8, unique=True)
    biased, seen, banned = choose(ids), choose(ids), choose(ids)
    counts = [choose(st.integers(0, 3)) for _ in seen]
    few = st.sets(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=9)
    many = st.integers(0, 99).map(
        lambda seed: set(np.flatnonzero(np.random.default_rng(seed).random(VOCAB_SIZE) < 0.5))
    )
    mask = choose(st.none() | few | many)
    return LogitsEdits(
        allowed=None if mask is None else Mask(tuple(sorted(mask)), VOCAB_SIZE),
        banned=frozen(np.array(banned, np.int64)) if choose(st.booleans()) else None,
        bias_ids=frozen(np.array(biased, np.int64)),
        bias=frozen(np.linspace(-3, 3, len(biased), dtype=np.float32)),
        penalties=choose(
            st.none()
            | st.just(Penalties(frozen(np.array(seen, np.int64)), frozen(np.array(counts, np.int32)), 1.3, 0.4, -0.2))
        ),
        processors=choose(st.sampled_from([(), (), (lambda ids, logits: logits / 2,)])),
    )


row_values = st.tuples(
    st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    st.sampled_from([0, 1, 4, 30]),
    st.sampled_from([0.3, 0.9, 1.0]),
    st.sampled_from([0.0, 0.1]),
    st.integers(0, 9),
)


@given(st.lists(st.tuples(row_values, some_edits() | st.none()), min_size=1, max_size=12), st.integers(0, 2**32))
@settings(max_examples=100)
def test_a_row_s_token_is_that_of_its_edited_logits_whatever_the_other_rows_are(
    wanted: list[tuple[tuple[float, ...], LogitsEdits | None]], seed: int
) -> None:
    """So edits reach their own row alone, and drawing among the few allowed is drawing among all."""
    logits = frozen(np.random.default_rng(seed).normal(0, 2, (len(wanted), VOCAB_SIZE)).astype(np.float32))
    rows = frozen(np.array([values for values, _ in wanted], SAMPLING_ROW))
    positions = frozen(np.arange(10, 10 + len(wanted)))
    edits = {i: edits for i, (_, edits) in enumerate(wanted) if edits is not None}
    output = sample(logits, SamplingBatch(rows, positions, edits), one_each(len(wanted)))
    uniforms = uniform(rows["seed"], positions)
    for i in range(len(wanted)):
        whole = edit_row(logits[i].copy(), edits[i]) if i in edits else logits[i]
        assert output.token_ids[i] == [plain_draw(whole, rows[i], float(uniforms[i]))]


@given(some_edits(), st.integers(0, 2**32))
def test_few_logits_are_edited_as_the_whole_row_is(edits: LogitsEdits, seed: int) -> None:
    if edits.allowed is None or edits.processors:
        return
    logits = np.random.default_rng(seed).normal(0, 2, VOCAB_SIZE).astype(np.float32)
    bits = np.unpackbits(edits.allowed.result().view(np.uint8), bitorder="little")
    ids = np.flatnonzero(bits)
    if len(ids):
        assert np.array_equal(edit_row(logits[ids], edits, ids), edit_row(logits.copy(), edits)[ids])


def test_more_edited_rows_than_are_copied_at_once() -> None:
    logits = np.random.default_rng(1).normal(0, 1, (40, VOCAB_SIZE)).astype(np.float32)
    edits = {i: LogitsEdits(banned=logits[i : i + 1].argmax(axis=1)) for i in range(0, 40, 2)}
    output = sample(logits, sampling_of(*[GREEDY] * 40, edits=edits), one_each(40))
    order = np.argsort(-logits, axis=1)
    assert output.token_ids == [[int(order[i, 1 - i % 2])] for i in range(40)]


def test_only_sampled_rows_give_tokens_and_targets_get_their_log_probabilities() -> None:
    logits = np.random.default_rng(2).normal(0, 1, (5, VOCAB_SIZE)).astype(np.float32)
    sampling = sampling_of(
        *[RANDOM] * 5,
        edits={0: LogitsEdits(allowed=Mask((), VOCAB_SIZE)), 2: LogitsEdits(allowed=Mask((9,), VOCAB_SIZE))},
        targets=np.array([4, 7, -1, -1, 6]),
        num_logprobs=np.array([0, 1, -1, 2, 0], np.int32),
    )
    output = sample(logits, sampling, np.array([0, 3, 3, 4, 5], np.int32))
    assert [len(tokens) for tokens in output.token_ids] == [1, 0, 1, 0]
    assert output.token_ids[0] == [9]
    assert output.logprobs is not None
    own = [None if row is None else int(row.token_ids[0]) for row in output.logprobs]
    assert own == [4, 7, None, output.token_ids[2][0], 6]


def test_a_step_of_targets_alone_draws_nothing() -> None:
    def no_draw(logits: Float32Array, rows: npt.NDArray[np.void], uniforms: Any) -> npt.NDArray[np.int64]:
        raise AssertionError("nothing is to be drawn")

    sampling = sampling_of(RANDOM, RANDOM, targets=np.array([1, 2]), num_logprobs=np.array([0, 0], np.int32))
    output = sample(np.zeros((2, 4), np.float32), sampling, np.array([0, 2], np.int32), no_draw)
    assert output.token_ids == [[]]


def test_a_step_that_wants_no_logits_gives_empty_lists() -> None:
    assert sample(np.zeros((0, 4), np.float32), sampling_of(), np.zeros(3, np.int32)).token_ids == [[], []]


def test_the_runner_s_own_draw_is_given_every_sampled_row() -> None:
    drawn = []

    def noting(logits: Float32Array, rows: npt.NDArray[np.void], uniforms: Any) -> npt.NDArray[np.int64]:
        drawn.append(logits.shape)
        return draw(logits, rows, uniforms)

    logits = np.random.default_rng(4).normal(0, 1, (4, VOCAB_SIZE)).astype(np.float32)
    edits = {
        1: LogitsEdits(allowed=Mask((2, 3, 4), VOCAB_SIZE)),
        2: LogitsEdits(banned=np.array([1])),
        3: LogitsEdits(),
    }
    sampling = sampling_of(*[RANDOM] * 4, edits=edits)
    assert sample(logits, sampling, one_each(4), noting) == sample(logits, sampling, one_each(4))
    assert drawn == [(4, VOCAB_SIZE), (1, 3), (1, VOCAB_SIZE)]


def test_plain_rows_are_drawn_without_a_copy() -> None:
    given_to_draw = []

    def noting(logits: Float32Array, rows: npt.NDArray[np.void], uniforms: Any) -> npt.NDArray[np.int64]:
        given_to_draw.append(logits)
        return draw(logits, rows, uniforms)

    logits = np.zeros((3, VOCAB_SIZE), np.float32)
    for params in (GREEDY, RANDOM):
        sample(logits, sampling_of(*[params] * 3), one_each(3), noting)
        assert given_to_draw.pop() is logits


@pytest.mark.parametrize("mask", [(), (2,), tuple(range(0, VOCAB_SIZE, 2))], ids=len)
def test_a_ban_that_would_leave_nothing_is_ignored(mask: tuple[int, ...]) -> None:
    edits = LogitsEdits(allowed=Mask(mask or (5,), VOCAB_SIZE), banned=np.arange(VOCAB_SIZE))
    output = sample(np.zeros((1, VOCAB_SIZE), np.float32), sampling_of(GREEDY, edits={0: edits}), one_each(1))
    assert output.token_ids == [[(mask or (5,))[0]]]


def cutting(output_token_ids: list[int], logits: Float32Array) -> Float32Array:
    return logits[:-1]


def excluding(output_token_ids: list[int], logits: Float32Array) -> Float32Array:
    return np.full_like(logits, -np.inf)


def spoiling(output_token_ids: list[int], logits: Float32Array) -> Float32Array:
    return logits * np.float32(np.nan)


def failing(output_token_ids: list[int], logits: Float32Array) -> Float32Array:
    raise KeyError("x")


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (LogitsEdits(allowed=Mask((), VOCAB_SIZE)), "no token is possible"),
        (LogitsEdits(allowed=Mask((0, 1), VOCAB_SIZE)), "no token is possible"),
        (LogitsEdits(allowed=Mask(tuple(range(50)), VOCAB_SIZE)), "no token is possible"),
        (LogitsEdits(processors=(excluding,)), "its largest logit is -inf"),
        (LogitsEdits(processors=(spoiling,)), "its largest logit is nan"),
        (LogitsEdits(processors=(cutting,)), r"shape \(99,\).*\(100,\)"),
        (LogitsEdits(processors=(failing,)), "KeyError: 'x'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_row_that_cannot_be_sampled_is_an_error(edits: LogitsEdits, message: str) -> None:
    logits = np.zeros((1, VOCAB_SIZE), np.float32)
    logits[:, :50] = -np.inf
    for params in (GREEDY, RANDOM):
        with pytest.raises(BackendError, match=message):
            sample(logits, sampling_of(params, edits={0: edits}), one_each(1))


def test_a_processor_may_write_to_its_logits_and_return_what_it_likes() -> None:
    def in_place(output_token_ids: list[int], logits: Float32Array) -> Float32Array:
        logits[3] = 50
        return logits

    kept = frozen(np.eye(1, VOCAB_SIZE, 7, dtype=np.float64)[0] * 9)
    logits = frozen(np.zeros((3, VOCAB_SIZE), np.float32))
    edits = {
        0: LogitsEdits(processors=(in_place,)),
        1: LogitsEdits(processors=(lambda ids, logits: kept,)),
        2: LogitsEdits(processors=(lambda ids, logits: [float(ids == [4, 8] and i == 8) for i in range(VOCAB_SIZE)],),
                       output_token_ids=(4, 8)),
    }  # fmt: skip
    assert sample(logits, sampling_of(*[GREEDY] * 3, edits=edits), one_each(3)).token_ids == [[3], [7], [8]]


def test_frequencies_under_edits_follow_the_edited_distribution() -> None:
    """Chi-square, 9 degrees of freedom: exceeded by chance less than once in 100,000."""
    count = 20_000
    logits = np.random.default_rng(9).normal(0, 1, VOCAB_SIZE).astype(np.float32)
    few = LogitsEdits(
        allowed=Mask(tuple(range(0, 100, 20)), VOCAB_SIZE), bias_ids=np.array([20]), bias=np.ones(1, "f4")
    )
    seen = Penalties(np.arange(0, 100, 3), np.arange(0, 100, 3, dtype=np.int32) % 4, 1.2, 0.3, 0.1)
    for edits, num_tokens in ((few, 5), (LogitsEdits(banned=np.arange(10, 100), penalties=seen), 10)):
        rows = rows_of(RANDOM).repeat(count)
        sampling = SamplingBatch(rows, np.arange(count), dict.fromkeys(range(count), edits))
        output = sample(np.tile(logits, (count, 1)), sampling, one_each(count))
        drawn = np.bincount([tokens[0] for tokens in output.token_ids], minlength=VOCAB_SIZE)
        weights = np.exp(edit_row(logits.copy(), edits).astype(np.float64))
        expected = count * weights / weights.sum()
        possible = expected > 0
        assert possible.sum() == num_tokens
        assert drawn[~possible].sum() == 0
        assert ((drawn - expected)[possible] ** 2 / expected[possible]).sum() < 39.3


@given(
    st.lists(
        st.tuples(row_values, some_edits() | st.none(), st.integers(-1, 3), st.booleans()), min_size=1, max_size=9
    ),
    st.integers(0, 2**32),
    st.data(),
)
@settings(max_examples=100)
def test_tokens_that_are_known_already_change_nothing_about_the_others(
    wanted: list[tuple[tuple[float, ...], LogitsEdits | None, int, bool]], seed: int, data: st.DataObject
) -> None:
    """Whichever of the plain rows a runner picks itself, the step's output is that of all rows together."""
    generator = np.random.default_rng(seed)
    logits = frozen(generator.normal(0, 2, (len(wanted), VOCAB_SIZE)).astype(np.float32))
    sampling = SamplingBatch(
        frozen(np.array([values for values, *_ in wanted], SAMPLING_ROW)),
        frozen(np.arange(10, 10 + len(wanted))),
        {i: edits for i, (_, edits, *_) in enumerate(wanted) if edits is not None},
        np.array([num_logprobs for *_, num_logprobs, _ in wanted], np.int32),
        np.where([is_target for *_, is_target in wanted], 5, -1),
    )
    starts = np.unique(np.array([0, len(wanted) // 2, len(wanted)], np.int32))
    whole = sample(logits, sampling, starts)

    plain = plain_rows(sampling)
    is_chosen = plain & np.array(data.draw(st.lists(st.booleans(), min_size=len(plain), max_size=len(plain))))
    alone = sample(logits, SamplingBatch(sampling.rows, sampling.positions), one_each(len(wanted)))
    token_ids = np.where(is_chosen, [tokens[0] for tokens in alone.token_ids], -7)
    apart = sample_others(token_ids, is_chosen, logits[~is_chosen], sampling, starts)

    assert apart.token_ids == whole.token_ids
    assert apart.logprobs is not None
    assert whole.logprobs is not None
    for one, other in zip(apart.logprobs, whole.logprobs, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert one.rank == other.rank
            assert one.token_ids.tolist() == other.token_ids.tolist()
            assert one.logprobs.tolist() == other.logprobs.tolist()


def test_rows_that_are_edited_or_judged_are_not_plain() -> None:
    sampling = sampling_of(
        *[GREEDY] * 5,
        edits={1: LogitsEdits(banned=np.array([3])), 2: LogitsEdits()},
        num_logprobs=np.array([-1, -1, -1, 0, -1], np.int32),
        targets=np.array([-1, -1, -1, -1, 8]),
    )
    assert plain_rows(sampling).tolist() == [True, False, True, False, False]
