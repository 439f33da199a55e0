"""GrammarState: masks ahead over drafts, forks, ends, wrong tokens, many at once, and a free interpreter."""

import random
import sys
import threading
import time
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from nanovllm.engine.grammar import Grammar, GrammarState
from nanovllm.engine.grammar_vocabulary import GrammarVocabulary
from nanovllm.errors import SamplingParamsError
from nanovllm.structured_outputs import StructuredOutputsParams
from tests.structured.schemas import SCHEMAS
from tests.structured.walking import Setup, WideTokenizer, allowed_ids, byte_setup, tiny_chat_setup, walk

NAMES = ["nested", "string", "enum of mixed values", "any of", "recursive tree", "number range", "date"]
Walked = tuple[Setup, Grammar, list[int]]


@cache
def tiny_chat() -> Setup:
    return tiny_chat_setup()


@st.composite
def walked(draw: st.DrawFn) -> Walked:
    """A grammar and the tokens of one of its outputs."""
    setup = tiny_chat()
    grammar = setup.compiler.compile(StructuredOutputsParams(json=SCHEMAS[draw(st.sampled_from(NAMES))]))
    return setup, grammar, walk(setup, grammar, random.Random(draw(st.integers(0, 2**32))))[0]


def after(grammar: Grammar, token_ids: list[int]) -> GrammarState:
    state = grammar.start()
    for token_id in token_ids:
        state.accept(token_id)
    return state


def mask(state: GrammarState) -> npt.NDArray[np.uint32]:
    return state.masks()[0].result().copy()


@given(case=walked(), data=st.data())
def test_masks_over_drafts_are_those_of_a_sequence_that_has_accepted_them(case: Walked, data: st.DataObject) -> None:
    _, grammar, token_ids = case
    split = data.draw(st.integers(0, len(token_ids)))
    drafts = token_ids[split : split + data.draw(st.integers(0, 8))]
    state, plain = after(grammar, token_ids[:split]), after(grammar, token_ids[:split])
    masks = [pending.result().copy() for pending in state.masks(drafts)]
    assert len(masks) == len(drafts) + 1
    for token_id, ahead in zip([*drafts, None], masks, strict=True):
        assert (ahead == mask(plain)).all()
        assert (mask(state) == mask(plain)).all()
        if token_id is not None:
            plain.accept(token_id)
            state.accept(token_id)
    assert state.is_finished == plain.is_finished


@given(case=walked(), data=st.data())
def test_a_refused_draft_changes_neither_the_masks_before_it_nor_the_sequence(
    case: Walked, data: st.DataObject
) -> None:
    setup, grammar, token_ids = case
    split = data.draw(st.integers(0, len(token_ids)))
    good = token_ids[split : split + data.draw(st.integers(0, 4))]
    before_bad = mask(after(grammar, token_ids[:split] + good))
    bad = data.draw(st.sampled_from(sorted(set(range(setup.vocab_size)) - set(allowed_ids(before_bad)))))
    state = after(grammar, token_ids[:split])
    masks = [pending.result().copy() for pending in state.masks([*good, bad, *good])]
    for i, ahead in enumerate(masks[: len(good) + 1]):
        assert (ahead == mask(after(grammar, token_ids[: split + i]))).all()
    for token_id in token_ids[split:]:
        state.accept(token_id)
    assert set(setup.eos_token_ids) <= set(allowed_ids(mask(state)))


@given(case=walked(), data=st.data())
def test_sequences_of_one_grammar_do_not_disturb_each_other(case: Walked, data: st.DataObject) -> None:
    setup, grammar, token_ids = case
    other_ids = walk(setup, grammar, random.Random(data.draw(st.integers(0, 99))))[0]
    alone = [mask(after(grammar, other_ids[:i])) for i in range(len(other_ids) + 1)]
    one, other = grammar.start(), grammar.start()
    for i, expected in enumerate(alone):
        one.masks(token_ids[i : i + 2])
        assert (mask(other) == expected).all()
        if i < len(token_ids):
            one.accept(token_ids[i])
        if i < len(other_ids):
            other.accept(other_ids[i])


@given(case=walked())
def test_bits_past_the_tokenizers_vocabulary_are_clear(case: Walked) -> None:
    setup, grammar, token_ids = case
    state = grammar.start()
    for pending in state.masks(token_ids):
        words = pending.result()
        assert words.dtype == np.uint32
        assert words.shape == (-(-setup.vocab_size // 32),)
        assert max(allowed_ids(words)) < setup.tokenizer.vocab_size


@pytest.mark.parametrize("vocab_size", [258, 287, 288, 289])
def test_masks_are_as_wide_as_the_logits(vocab_size: int) -> None:
    setup = byte_setup()
    compiler = Setup.of(setup.tokenizer, vocab_size, setup.eos_token_ids).compiler
    words = mask(compiler.compile(StructuredOutputsParams(regex=".*")).start())
    assert words.shape == (-(-vocab_size // 32),)
    assert set(setup.eos_token_ids) <= set(allowed_ids(words)) <= set(range(258))


def test_where_it_may_end_or_go_on_all_ends_are_allowed_and_when_complete_only_they_are() -> None:
    setup = byte_setup()
    state = setup.compiler.compile(StructuredOutputsParams(regex="ab?")).start()
    assert allowed_ids(mask(state)) == [ord("a")]
    state.accept(ord("a"))
    assert allowed_ids(mask(state)) == [ord("b"), *setup.eos_token_ids]
    assert not state.is_finished
    state.accept(ord("b"))
    assert allowed_ids(mask(state)) == [*setup.eos_token_ids]
    assert state.is_finished


@pytest.mark.parametrize("ending", [256, 257])
@pytest.mark.parametrize("text", ["a", "ab"])
def test_the_end_is_accepted_again_and_again_and_nothing_else_after_it(ending: int, text: str) -> None:
    setup = byte_setup()
    state = after(setup.compiler.compile(StructuredOutputsParams(regex="ab?")), list(text.encode()))
    for _ in range(3):
        state.accept(ending)
        assert state.is_finished
        assert allowed_ids(mask(state)) == [*setup.eos_token_ids]
        assert all(allowed_ids(m.result()) == [*setup.eos_token_ids] for m in state.masks([ending, ending]))
    with pytest.raises(SamplingParamsError):
        state.accept(ord("b"))


def test_an_end_drafted_before_the_true_end_leaves_the_sequence_as_it_was() -> None:
    setup = byte_setup()
    state = setup.compiler.compile(StructuredOutputsParams(regex="ab?")).start()
    masks = state.masks([ord("a"), 256, 257])
    assert allowed_ids(masks[1].result()) == [ord("b"), 256, 257]
    assert allowed_ids(masks[2].result()) == [256, 257]
    state.accept(ord("a"))
    assert allowed_ids(mask(state)) == [ord("b"), 256, 257]


@given(case=walked(), data=st.data())
def test_a_token_that_is_not_allowed_is_refused_and_other_sequences_go_on(case: Walked, data: st.DataObject) -> None:
    setup, grammar, token_ids = case
    split = data.draw(st.integers(0, len(token_ids)))
    state, other = after(grammar, token_ids[:split]), grammar.start()
    forbidden = set(range(setup.tokenizer.vocab_size)) - set(allowed_ids(mask(state)))
    # where text is forced, only its usual cut into tokens is in the mask, but other cuts spell the same text
    pieces = setup.tokenizer.inner_token_bytes()
    assert pieces is not None
    if len(allowed_ids(mask(state))) == 1:
        forced = pieces[allowed_ids(mask(state))[0]]
        forbidden = {i for i in forbidden if not forced.startswith(pieces[i]) and not pieces[i].startswith(forced)}
    bad = data.draw(st.sampled_from(sorted(forbidden)))
    with pytest.raises(SamplingParamsError, match="left its grammar"):
        state.accept(bad)
    for token_id in token_ids:
        assert token_id in allowed_ids(mask(other))
        other.accept(token_id)


def test_the_masks_of_48_sequences_at_once_are_those_of_each_alone() -> None:
    setup, names = tiny_chat(), sorted(SCHEMAS)
    grammars = [setup.compiler.compile(StructuredOutputsParams(json=SCHEMAS[names[i % len(names)]])) for i in range(48)]
    walks = [walk(setup, grammar, random.Random(i))[0] for i, grammar in enumerate(grammars)]
    states = [grammar.start() for grammar in grammars]
    fresh = tiny_chat_setup()  # nothing shared with the states above
    alone = [fresh.compiler.compile(StructuredOutputsParams(json=SCHEMAS[names[i % len(names)]])) for i in range(48)]
    expected = [grammar.start() for grammar in alone]
    for step in range(40):
        pending = [state.masks(ids[step : step + 3]) for state, ids in zip(states, walks, strict=True)]
        for reference, masks in zip(expected, pending, strict=True):
            assert (masks[0].result() == mask(reference)).all()
        for state, reference, ids in zip(states, expected, walks, strict=True):
            if step < len(ids):
                state.accept(ids[step])
                reference.accept(ids[step])


def test_the_interpreter_runs_on_while_a_mask_is_computed() -> None:
    """A thread that notes the time without pause has notes from the middle of a long computation.

    The interpreter never takes its lock from a thread here, so the computing thread gives it away or keeps it.
    """
    vocabulary = GrammarVocabulary(WideTokenizer(), WideTokenizer.vocab_size, (256,))
    tokenizer = LLTokenizer(TokenizerWrapper(vocabulary), eos_token=[256], slices=[])  # slices would make it short
    words = np.zeros(-(-WideTokenizer.vocab_size // 32), np.uint32)
    matchers = [LLMatcher(tokenizer, f"start: /([a-z]{{1,{60 + i}}}[0-9]){{3}}/") for i in range(60)]
    noted: list[float] = []
    done = threading.Event()

    def note() -> None:
        while not done.is_set():
            noted.append(time.perf_counter())
            time.sleep(0)  # gives the lock away

    noting = threading.Thread(target=note)
    spans = []
    usual = sys.getswitchinterval()
    sys.setswitchinterval(60.0)
    try:
        noting.start()
        for matcher in matchers:
            start = time.perf_counter()
            matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
            spans.append((start, time.perf_counter()))
    finally:
        done.set()
        noting.join()
        sys.setswitchinterval(usual)
    times = np.array(noted)
    middles = [(a + (b - a) / 4, b - (b - a) / 4) for a, b in spans if b - a > 5e-4]
    assert middles, spans
    assert any(((times > a) & (times < b)).any() for a, b in middles)
