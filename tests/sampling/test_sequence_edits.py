"""SequenceEdits as a sequence grows: with drafts, with a grammar, for siblings."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanovllm import SamplingParams, SamplingParamsError
from nanovllm.batch import LogitsEdits, TokenMask
from nanovllm.engine.logits_edits import SequenceEdits, bad_word_token_ids, needs_edits
from nanovllm.plugins import Tokenizer
from nanovllm.structured_outputs import StructuredOutputsParams
from tests.sampling.plain import Mask

VOCAB_SIZE = 70


@dataclass
class Alternation:
    """A grammar state of the engine's kind: after an even token an odd one may come, and the other way about."""

    last: int = 0
    accepted: list[int] = field(default_factory=list)

    def masks(self, drafts: Seq[int] = ()) -> list[TokenMask]:
        return [Mask(tuple(range(1 - last % 2, VOCAB_SIZE, 2)), VOCAB_SIZE) for last in (self.last, *drafts)]

    def accept(self, token_id: int) -> None:
        self.last = token_id
        self.accepted.append(token_id)


def same(output_token_ids: list[int], logits: Any) -> Any:
    return logits


token_ids = st.integers(0, 9)
parameters = st.builds(
    SamplingParams,
    max_tokens=st.none(),
    repetition_penalty=st.sampled_from([1.0, 1.2]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    presence_penalty=st.sampled_from([0.0, -0.5]),
    min_tokens=st.integers(0, 6),
    logit_bias=st.sampled_from([None, {1: 2.0}]),
    allowed_token_ids=st.sampled_from([None, [1, 2, 3, 33, 69]]),
    logits_processors=st.sampled_from([None, [same]]),
)
bad_words = st.lists(st.lists(token_ids, min_size=1, max_size=4), max_size=8)


def make(params: SamplingParams, prompt: list[int], words: list[list[int]], has_grammar: bool) -> SequenceEdits:
    return SequenceEdits(
        params,
        prompt,
        stop_token_ids=frozenset({0, 5}),
        bad_words=words,
        vocab_size=VOCAB_SIZE,
        grammar=Alternation() if has_grammar else None,
    )


def plain(edits: LogitsEdits) -> dict[str, Any]:
    """What the edits say, in values that stay what they are when the sequence grows."""
    penalties = edits.penalties
    counts = {}
    if penalties is not None:
        counts = dict(zip(penalties.token_ids.tolist(), penalties.counts.tolist(), strict=True))
        assert len(counts) == len(penalties.token_ids)
    return {
        "allowed": None if edits.allowed is None else edits.allowed.result().tolist(),
        "banned": set() if edits.banned is None else set(edits.banned.tolist()),
        "bias": None
        if edits.bias is None or edits.bias_ids is None
        else (edits.bias_ids.tolist(), edits.bias.tolist()),
        "counts": counts,
        "factors": penalties and (penalties.repetition, penalties.frequency, penalties.presence),
        "processors": edits.processors,
        "output": list(edits.output_token_ids),
    }


@given(
    parameters,
    st.lists(token_ids, min_size=1, max_size=8),
    st.lists(token_ids, max_size=90),
    st.lists(token_ids, max_size=6),
    bad_words,
    st.booleans(),
)
@settings(max_examples=300)
def test_rows_with_drafts_are_those_of_appending_the_drafts_one_by_one(
    params: SamplingParams,
    prompt: list[int],
    output: list[int],
    drafts: list[int],
    words: list[list[int]],
    has_grammar: bool,
) -> None:
    edits = make(params, prompt, words, has_grammar)
    for token_id in output:
        edits.append(token_id)
    at_once = [plain(row) for row in edits.rows(drafts)]
    again = [plain(row) for row in edits.rows(drafts)]
    one_by_one = [plain(edits.rows()[0])]
    for draft in drafts:
        edits.append(draft)
        one_by_one.append(plain(edits.rows()[0]))
    assert at_once == again == one_by_one


@given(parameters, st.lists(token_ids, max_size=40), bad_words)
def test_what_is_kept_is_what_the_whole_sequence_says(
    params: SamplingParams, output: list[int], words: list[list[int]]
) -> None:
    prompt = [7, 7, 8, 60]
    edits = make(params, prompt, words, has_grammar=False)
    for token_id in output:
        edits.append(token_id)
    row = plain(edits.rows()[0])
    text = "".join(f",{token_id}" for token_id in output)
    banned = {word[-1] for word in words if text.endswith("".join(f",{token_id}" for token_id in word[:-1]))}
    assert row["banned"] == banned | ({0, 5} if len(output) < params.min_tokens else set())
    if row["factors"] is not None:
        seen = {*output, *(prompt if params.repetition_penalty != 1 else [])}
        assert row["counts"] == {token_id: output.count(token_id) for token_id in seen}


def test_siblings_share_nothing_that_changes() -> None:
    params = SamplingParams(n=2, repetition_penalty=1.5, allowed_token_ids=[1, 2], logit_bias={1: 1.0})
    one, other = (make(params, [1, 2], [[3, 4]], has_grammar=True) for _ in range(2))
    before = plain(other.rows()[0])
    for token_id in (3, 4, 5):
        one.append(token_id)
    assert plain(other.rows()[0]) == before != plain(one.rows()[0])


def test_the_grammar_is_told_of_every_token_and_combined_with_allowed_token_ids() -> None:
    grammar = Alternation()
    params = SamplingParams(allowed_token_ids=[2, 3, 69], structured_outputs=StructuredOutputsParams(regex="x"))
    edits = SequenceEdits(params, [1], stop_token_ids=frozenset(), vocab_size=VOCAB_SIZE, grammar=grammar)
    edits.append(4)
    edits.append(7)
    first, second = (row.allowed for row in edits.rows([10]))
    assert first is not None
    assert second is not None
    assert np.array_equal(first.result(), Mask((2,), VOCAB_SIZE).result())
    assert np.array_equal(second.result(), Mask((3, 69), VOCAB_SIZE).result())
    assert grammar.accepted == [4, 7]


def test_stop_ids_and_bad_words_that_the_model_does_not_have_are_left_out() -> None:
    edits = SequenceEdits(
        SamplingParams(min_tokens=2),
        [1],
        stop_token_ids=frozenset({3, VOCAB_SIZE, 10**30}),
        bad_words=[[VOCAB_SIZE + 1], [4]],
        vocab_size=VOCAB_SIZE,
    )
    assert plain(edits.rows()[0])["banned"] == {3, 4}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("repetition_penalty", 1.1),
        ("frequency_penalty", 0.1),
        ("presence_penalty", -0.1),
        ("logit_bias", {1: 1.0}),
        ("allowed_token_ids", [1]),
        ("bad_words", ["x"]),
        ("min_tokens", 1),
        ("logits_processors", [same]),
        ("structured_outputs", StructuredOutputsParams(regex="x")),
    ],
)
def test_a_parameter_that_edits_logits_needs_edits(option: str, value: object) -> None:
    assert needs_edits(SamplingParams(**{option: value}))


def test_parameters_that_only_shape_the_distribution_need_none() -> None:
    params = SamplingParams(temperature=0.5, top_k=3, top_p=0.5, min_p=0.1, logprobs=3, stop="x", seed=1, logit_bias={})
    assert not needs_edits(params)


class PieceTokenizer(Tokenizer):
    """Takes the longest piece that fits, again and again; a space at the very end has no tokens."""

    pieces = ("the", " the", "New", " New", " York", "Q", " ")
    vocab_size = len(pieces)
    special_token_ids: frozenset[int] = frozenset()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens
        found, text = [], text.rstrip()
        while text:
            piece = max((piece for piece in self.pieces if text.startswith(piece)), key=len)
            found.append(self.pieces.index(piece))
            text = text.removeprefix(piece)
        return found

    def decode(self, token_ids: Seq[int], *, skip_special_tokens: bool = True) -> str:
        return "".join(self.pieces[i] for i in token_ids)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["the"], [["the"], [" the"]]),
        (["  the"], [["the"], [" the"]]),
        (["New York"], [["New", " York"], [" New", " York"]]),
        (["Q"], [["Q"]]),  # with a space it would be one token more
        (["Q", "the"], [["Q"], ["the"], [" the"]]),
    ],
    ids=str,
)
def test_a_bad_word_is_written_as_vllm_writes_it(words: list[str], expected: list[list[str]]) -> None:
    found = bad_word_token_ids(words, PieceTokenizer())
    assert [[PieceTokenizer.pieces[i] for i in ids] for ids in found] == expected


def test_a_bad_word_without_tokens_is_refused() -> None:
    with pytest.raises(SamplingParamsError, match="bad_words holds '  '"):
        bad_word_token_ids(["the", "  "], PieceTokenizer())
