"""Edits of logits, from parameters to edited rows: the processors of transformers do the same on random logits."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process

from nanovllm import SamplingParams
from nanovllm.batch import Penalties
from nanovllm.engine.logits_edits import SequenceEdits
from nanovllm.logits_row import edit_row
from tests.sampling.plain import Float32Array

VOCAB_SIZE = 40
token_ids = st.integers(0, VOCAB_SIZE - 1)
texts = st.lists(token_ids, max_size=30)
prompts = st.lists(token_ids, min_size=1, max_size=20)
seeds = st.integers(0, 2**32)


def random_logits(seed: int) -> Float32Array:
    return np.random.default_rng(seed).normal(0, 3, VOCAB_SIZE).astype(np.float32)


def edited(logits: Float32Array, prompt: list[int], output: list[int], **options: Any) -> Float32Array:
    """The logits of the token after prompt + output, as the parameters have them edited."""
    stop_token_ids, bad_words = options.pop("stop", frozenset()), options.pop("bad_word_ids", [])
    edits = SequenceEdits(
        SamplingParams(max_tokens=None, **options),
        prompt,
        stop_token_ids=frozenset(stop_token_ids),
        bad_words=bad_words,
        vocab_size=VOCAB_SIZE,
    )
    for token_id in output:
        edits.append(token_id)
    return edit_row(logits.copy(), edits.rows()[0])


def by_transformers(logits: Float32Array, token_ids: list[int], processor: Callable[..., torch.Tensor]) -> Float32Array:
    ids = torch.tensor([token_ids], dtype=torch.long)
    return processor(ids, torch.from_numpy(logits.copy())[None])[0].numpy()


@given(prompts, texts, st.sampled_from([0.3, 0.9, 1.1, 1.2, 5.0]), seeds)
def test_the_repetition_penalty(prompt: list[int], output: list[int], penalty: float, seed: int) -> None:
    logits = random_logits(seed)
    processor = logits_process.RepetitionPenaltyLogitsProcessor(penalty)
    ours = edited(logits, prompt, output, repetition_penalty=penalty)
    assert np.array_equal(ours, by_transformers(logits, prompt + output, processor))


@given(prompts, texts, st.dictionaries(token_ids, st.floats(-100, 100, width=32), min_size=1), seeds)
def test_a_bias(prompt: list[int], output: list[int], bias: dict[int, float], seed: int) -> None:
    logits = random_logits(seed)
    processor = logits_process.SequenceBiasLogitsProcessor({(i,): x for i, x in bias.items()})
    ours = edited(logits, prompt, output, logit_bias=bias)
    assert np.array_equal(ours, by_transformers(logits, prompt + output, processor))


@given(st.lists(token_ids, min_size=1, unique=True), seeds)
def test_allowed_token_ids(allowed: list[int], seed: int) -> None:
    logits = random_logits(seed)
    processor = logits_process.PrefixConstrainedLogitsProcessor(lambda batch, ids: allowed, 1)
    ours = edited(logits, [1], [], allowed_token_ids=allowed)
    assert np.array_equal(ours, by_transformers(logits, [1], processor))


@given(
    st.lists(st.integers(0, 3), max_size=12),
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), min_size=1, max_size=6),
    seeds,
)
@settings(max_examples=300)
def test_bad_words(output: list[int], words: list[list[int]], seed: int) -> None:
    """transformers looks at the prompt too, vLLM and we at the output alone; so the output is all that it is shown."""
    logits = random_logits(seed)
    processor = logits_process.NoBadWordsLogitsProcessor(words)
    ours = edited(logits, [0, 1, 2, 3], output, bad_words=["x"], bad_word_ids=words)
    assert np.array_equal(ours, by_transformers(logits, output, processor))


@given(prompts, texts, st.integers(0, 35), st.sets(token_ids, min_size=1, max_size=4), seeds)
def test_min_tokens(prompt: list[int], output: list[int], min_tokens: int, stop: set[int], seed: int) -> None:
    logits = random_logits(seed)
    ours = edited(logits, prompt, output, min_tokens=min_tokens, stop=stop)
    assert np.isneginf(ours[sorted(stop)]).all() == (len(output) < min_tokens)
    if min_tokens:
        processor = logits_process.MinNewTokensLengthLogitsProcessor(len(prompt), min_tokens, sorted(stop))
        assert np.array_equal(ours, by_transformers(logits, prompt + output, processor))


@given(st.sets(token_ids, min_size=1, max_size=6), seeds)
def test_words_of_one_token_are_suppressed_everywhere(suppressed: set[int], seed: int) -> None:
    logits = random_logits(seed)
    processor = logits_process.SuppressTokensLogitsProcessor(sorted(suppressed))
    ours = edited(logits, [5], [6, 7], bad_words=["x"], bad_word_ids=[[i] for i in suppressed])
    assert np.array_equal(ours, by_transformers(logits, [5, 6, 7], processor))


penalties = st.floats(-2, 2).map(lambda x: round(x, 2))


@given(prompts, texts, st.sampled_from([0.5, 1.0, 1.3]), penalties, penalties, seeds)
def test_all_penalties_together_are_those_of_a_loop_over_tokens(
    prompt: list[int], output: list[int], repetition: float, frequency: float, presence: float, seed: int
) -> None:
    logits = random_logits(seed)
    expected = [float(x) for x in logits]
    for i, x in enumerate(expected):
        if i in prompt or i in output:
            x = x / repetition if x > 0 else x * repetition
        expected[i] = x - frequency * output.count(i) - (presence if i in output else 0)
    ours = edited(
        logits, prompt, output, repetition_penalty=repetition, frequency_penalty=frequency, presence_penalty=presence
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@given(prompts, texts, penalties, penalties, seeds)
def test_frequency_and_presence_penalties_are_vllm_s_formula_to_the_bit(
    prompt: list[int], output: list[int], frequency: float, presence: float, seed: int
) -> None:
    """logits -= frequency * counts; logits -= presence * (counts > 0): in float32, over the output alone."""
    logits = torch.from_numpy(random_logits(seed))
    counts = torch.bincount(torch.tensor(output, dtype=torch.long), minlength=VOCAB_SIZE)
    expected = logits - torch.tensor([frequency]) * counts
    expected -= torch.tensor([presence]) * (counts > 0)
    ours = edited(logits.numpy(), prompt, output, frequency_penalty=frequency, presence_penalty=presence)
    assert np.array_equal(ours, expected.numpy())


def test_edits_come_in_the_order_of_vllm() -> None:
    """allowed, banned, bias, penalties, processors: the bias of a token is penalized, the processors see it all."""
    seen = []

    def processor(output_token_ids: list[int], logits: Float32Array) -> Float32Array:
        seen.append((output_token_ids, logits.copy()))
        return logits * 2

    logits = np.zeros(VOCAB_SIZE, np.float32)
    ours = edited(
        logits, [1], [2, 2, 3],
        allowed_token_ids=[2, 3, 4], bad_words=["x"], bad_word_ids=[[4]], logit_bias={2: 8, 4: 9},
        repetition_penalty=2.0, frequency_penalty=1.0, presence_penalty=0.5, logits_processors=[processor, processor],
    )  # fmt: skip
    expected = np.full(VOCAB_SIZE, -np.inf)
    expected[[2, 3]] = 8 / 2 - 2 - 0.5, 0 / 2 - 1 - 0.5
    assert np.array_equal(ours, expected * 4)
    assert [ids for ids, _ in seen] == [[2, 2, 3]] * 2
    assert np.array_equal(seen[0][1], expected)
    assert np.array_equal(seen[1][1], expected * 2)


def test_a_bias_is_clamped_to_a_hundred() -> None:
    ours = edited(np.zeros(VOCAB_SIZE, np.float32), [1], [], logit_bias={1: 1e9, 2: -1e9, 3: float("inf"), 4: 99.5})
    assert ours[:6].tolist() == [0, 100, -100, 100, 99.5, 0]


def test_an_absurd_repetition_penalty_makes_no_nan() -> None:
    logits = np.array([0, 1, -1, 3e38, -np.inf, -3e38] + [7] * (VOCAB_SIZE - 6), np.float32)
    for penalty in (1e-300, 1e300):
        assert not np.isnan(edited(logits, list(range(6)), [], repetition_penalty=penalty)).any()


def test_the_prompt_counts_for_the_repetition_penalty_alone() -> None:
    edits = SequenceEdits(
        SamplingParams(frequency_penalty=1.0), [1, 2, 3], stop_token_ids=frozenset(), vocab_size=VOCAB_SIZE
    )
    assert edits.rows()[0].penalties is None
    edits.append(2)
    found = edits.rows()[0].penalties
    assert isinstance(found, Penalties)
    assert (found.token_ids.tolist(), found.counts.tolist()) == ([2], [1])
