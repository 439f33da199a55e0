"""Tool calls and reasoning in text: the laws that hold for every form, every text and every way of cutting it."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanovllm.errors import ConfigError
from nanovllm.server.chat_parser import (
    ChatEvent,
    ContentDelta,
    ReasoningDelta,
    ToolArgumentsDelta,
    ToolCallStart,
    check_parsers,
    make_chat_parser,
    needs_special_tokens,
)
from nanovllm.server.tools.formats import TOOL_FORMATS
from nanovllm.server.tools.json_scanner import JsonScanner

TOOLS = [{"type": "function", "function": {"name": "f"}}]
CHOICES = [("auto", name) for name in TOOL_FORMATS] + [
    ("required", None),
    ({"type": "function", "function": {"name": "f"}}, None),
]
PIECES = [
    *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<think>", "</think>", "[ARGS]", "[CALL_ID]x1"),
    *('{"name": "f", "arguments": {"a": 1}}', '{"name": "f", "parameters": {}}', 'f{"a": [2, {}]}', '{"name": "'),
    *('"arguments": {"b": "}"}', "[", "]", "{", "}", ",", ";", " ", "\n", '"', "\\", "f", ":", "text", "<", "é🙂"),
]
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join)
numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
calls = st.tuples(
    st.from_regex(r"\A[a-zA-Z_][a-zA-Z0-9_-]{0,20}\Z"), st.dictionaries(st.text(max_size=5), values, max_size=3)
)
plain = st.text("abc xyz.!\n", max_size=20)


def cut(text: str, places: list[int]) -> list[str]:
    borders = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in itertools.pairwise(borders)]


def parse(pieces: list[str], choice: Any = "auto", form: str | None = None, **more: Any) -> list[ChatEvent]:
    options = {"reasoning_parser": None, "prompt": "", **more}
    parser = make_chat_parser(tools=TOOLS, tool_choice=choice, tool_parser=form, **options)
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events + parser.finish()


def joined(events: list[ChatEvent]) -> list[tuple[str, ...]]:
    """Neighbours of one kind as one; ids are random and left out."""
    told: list[tuple[str, ...]] = []
    for event in events:
        match event:
            case ToolCallStart(index, _, name):
                told.append(("call", str(index), name))
                continue
            case ToolArgumentsDelta(index, text):
                kind = f"arguments {index}"
            case ContentDelta(text):
                kind = "content"
            case ReasoningDelta(text):
                kind = "reasoning"
        assert text, "an event says something"
        if told and told[-1][0] == kind:
            text = told.pop()[1] + text
        told.append((kind, text))
    return told


def content(events: list[ChatEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, ContentDelta))


def made(events: list[ChatEvent]) -> list[tuple[str, str]]:
    """Names and arguments of the calls."""
    starts = [event for event in events if isinstance(event, ToolCallStart)]
    assert [start.index for start in starts] == list(range(len(starts)))
    assert len({start.id for start in starts}) == len(starts)
    pieces = [event for event in events if isinstance(event, ToolArgumentsDelta)]
    return [(s.name, "".join(piece.text for piece in pieces if piece.index == s.index)) for s in starts]


def spelled(form: str, some: list[tuple[str, dict[str, Any]]], *, ascii_only: bool) -> str:
    """Calls as a model of that form writes them."""
    raw = [(json.dumps(name), json.dumps(arguments, ensure_ascii=ascii_only)) for name, arguments in some]
    if form == "hermes":
        body = '<tool_call>\n{{"name": {}, "arguments": {}}}\n</tool_call>'
        return "\n".join(body.format(*call) for call in raw)
    if form == "llama3_json":
        return "; ".join('{{"name": {}, "parameters": {}}}'.format(*call) for call in raw)
    if form == "mistral":
        return "[TOOL_CALLS][" + ", ".join('{{"name": {}, "arguments": {}}}'.format(*call) for call in raw) + "]"
    return "".join(f"[TOOL_CALLS]{name}{arguments}" for (name, _), (_, arguments) in zip(some, raw, strict=True))


@pytest.mark.parametrize(("choice", "form"), CHOICES)
@pytest.mark.parametrize("reasoning", [None, "qwen3", "deepseek_r1"])
@given(text=texts, places=st.lists(st.integers(0, 200), max_size=12))
def test_however_a_text_is_cut_its_events_are_the_same(
    choice: Any, form: str | None, reasoning: str | None, text: str, places: list[int]
) -> None:
    more = {"reasoning_parser": reasoning, "prompt": "hello"}
    whole = joined(parse([text], choice, form, **more))
    assert joined(parse(cut(text, places), choice, form, **more)) == whole
    assert joined(parse(list(text), choice, form, **more)) == whole


@pytest.mark.parametrize(("choice", "form"), CHOICES)
@given(text=texts)
def test_a_text_without_a_call_comes_out_as_it_is(choice: Any, form: str | None, text: str) -> None:
    events = parse([text], choice, form)
    if not made(events):
        assert content(events) == text


@pytest.mark.parametrize(("choice", "form"), CHOICES)
@given(text=texts)
def test_content_and_arguments_are_pieces_of_the_text(choice: Any, form: str | None, text: str) -> None:
    events = parse([text], choice, form)
    rest = iter(text)
    assert all(char in rest for char in content(events)), "content keeps its order"
    assert all(arguments in text for _, arguments in made(events))


@pytest.mark.parametrize("form", [*TOOL_FORMATS, "mistral, newer"])
@given(before=plain, some=st.lists(calls, min_size=1, max_size=3), after=plain, ascii_only=st.booleans())
def test_calls_arrive_as_the_model_wrote_them(
    form: str, before: str, some: list[tuple[str, dict[str, Any]]], after: str, ascii_only: bool
) -> None:
    before = "" if form == "llama3_json" else before
    events = parse([before + spelled(form, some, ascii_only=ascii_only) + after], "auto", form.split(",")[0])
    assert made(events) == [(name, json.dumps(arguments, ensure_ascii=ascii_only)) for name, arguments in some]
    assert "".join(content(events).split()) == "".join((before + after).split())


@pytest.mark.parametrize("form", TOOL_FORMATS)
@given(some=st.lists(calls, min_size=1, max_size=2), length=st.integers(0, 400))
def test_of_a_text_that_breaks_off_nothing_is_invented(
    form: str, some: list[tuple[str, dict[str, Any]]], length: int
) -> None:
    text = spelled(form, some, ascii_only=True)
    events = parse([text[:length]], "auto", form)
    for (name, arguments), (whole_name, whole) in zip(made(events), some, strict=False):
        assert name == whole_name
        assert json.dumps(whole).startswith(arguments)


@pytest.mark.parametrize("form", TOOL_FORMATS)
def test_arguments_come_out_while_they_are_written(form: str) -> None:
    text = spelled(form, [("f", {"city": "Paris"})], ascii_only=True)
    parser = make_chat_parser(tools=TOOLS, tool_choice="auto", tool_parser=form, reasoning_parser=None, prompt="")
    written = text.index("ris")
    assert made(parser.feed(text[:written])) == [("f", '{"city": "Pa')]
    assert parser.feed("r") == [ToolArgumentsDelta(0, "r")]


@pytest.mark.parametrize("form", TOOL_FORMATS)
def test_text_is_held_back_only_while_it_may_begin_a_call(form: str) -> None:
    parser = make_chat_parser(tools=TOOLS, tool_choice="auto", tool_parser=form, reasoning_parser=None, prompt="")
    marker = TOOL_FORMATS[form].marker
    assert marker is not None
    assert parser.feed("Hello") == [ContentDelta("Hello")]
    assert parser.feed(" and " + marker[:-1]) == [ContentDelta(" and ")]
    assert parser.feed("?") == [ContentDelta(marker[:-1] + "?")]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>{}</tool_call>",
        '<tool_call>{"name": "f"}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
        '<tool_call>{"name": 1, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>',
        '<tool_call>{"name": "f", "other": {}}</tool_call>',
        "<tool_call>" + "[" * 100_000,
    ],
)
def test_a_malformed_call_is_content(text: str) -> None:
    assert joined(parse([text], "auto", "hermes")) == [("content", text)]


def test_a_call_whose_arguments_go_wrong_keeps_its_beginning_and_the_rest_is_content() -> None:
    events = parse(['<tool_call>{"name": "f", "arguments": {"a": oh no}}</tool_call>'], "auto", "hermes")
    assert joined(events) == [
        ("call", "0", "f"),
        ("arguments 0", '{"a": '),
        ("content", "oh no}}</tool_call>"),
    ]


def test_arguments_may_stand_before_the_name() -> None:
    events = parse(['<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>'], "auto", "hermes")
    assert made(events) == [("f", '{"a": 1}')]


def test_mistral_calls_may_carry_ids() -> None:
    events = parse(['[TOOL_CALLS]f[CALL_ID]Ab12[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{}'], "auto", "mistral")
    assert made(events) == [("f", '{"a": 1}'), ("g", "{}")]
    assert needs_special_tokens(TOOLS, "auto", "mistral")


def test_llama_calls_may_follow_its_marker_and_plain_json_is_content() -> None:
    assert made(parse(['<|python_tag|>{"name": "f", "parameters": {}}'], "auto", "llama3_json")) == [("f", "{}")]
    assert joined(parse(['{"answer": {"name": "f"}}'], "auto", "llama3_json")) == [
        ("content", '{"answer": {"name": "f"}}')
    ]


def test_without_parallel_calls_only_the_first_is_told() -> None:
    text = spelled("hermes", [("f", {}), ("g", {})], ascii_only=True)
    assert made(parse([text], "auto", "hermes", parallel_tool_calls=False)) == [("f", "{}")]


@pytest.mark.parametrize("choice", ["none", "auto"])
def test_where_no_call_is_allowed_or_known_a_call_is_text(choice: str) -> None:
    text = spelled("hermes", [("f", {})], ascii_only=True)
    form = "hermes" if choice == "none" else None
    assert joined(parse([text], choice, form)) == [("content", text)]


@pytest.mark.parametrize("reasoning", ["think", "qwen3", "deepseek_r1"])
@given(thought=plain, answer=plain, places=st.lists(st.integers(0, 99), max_size=6), is_open=st.booleans())
def test_thoughts_are_told_from_the_answer(
    reasoning: str, thought: str, answer: str, places: list[int], is_open: bool
) -> None:
    prompt = "user: hi\nassistant: " + ("<think>\n" if is_open else "")
    text = ("" if is_open else "<think>") + thought + "</think>\n\n" + answer
    events = parse(cut(text, places), "auto", "hermes", reasoning_parser=reasoning, prompt=prompt)
    assert "".join(event.text for event in events if isinstance(event, ReasoningDelta)) == thought.lstrip()
    assert content(events) == answer.lstrip()


def test_without_a_marker_only_a_model_that_always_reasons_is_taken_to_reason() -> None:
    assert joined(parse(["so"], "none", reasoning_parser="qwen3")) == [("content", "so")]
    assert joined(parse(["so"], "none", reasoning_parser="deepseek_r1")) == [("reasoning", "so")]
    closed = {"reasoning_parser": "deepseek_r1", "prompt": "<think>\n\n</think>\n\n"}
    assert joined(parse(["so"], "none", **closed)) == [("content", "so")]


def test_a_call_after_thoughts_is_found_and_one_inside_of_them_is_not() -> None:
    call = spelled("hermes", [("f", {})], ascii_only=True)
    events = parse([f"<think>{call}</think>\n{call}"], "auto", "hermes", reasoning_parser="think")
    assert joined(events) == [("reasoning", call), ("call", "0", "f"), ("arguments 0", "{}")]


def test_a_forced_call_is_read_without_reasoning() -> None:
    more = {"reasoning_parser": "deepseek_r1", "prompt": "<think>"}
    assert made(parse(['[{"name": "f", "arguments": {}}]'], "required", **more)) == [("f", "{}")]
    assert made(parse(['{"a": 1}'], {"type": "function", "function": {"name": "g"}}, **more)) == [("g", '{"a": 1}')]


def test_unknown_forms_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="hermes, llama3_json, mistral"):
        check_parsers("pythonic", None)
    with pytest.raises(ConfigError, match="deepseek_r1"):
        check_parsers(None, "thoughts")
    check_parsers("hermes", "qwen3")


json_pieces = st.sampled_from(
    ["{", "}", "[", "]", ",", ":", '"', '"a"', "\\", "\\u00e9", "\\x", "1", "0", "-", ".", "e", "+", "true", "nul", " "]
)


@given(text=values.map(json.dumps) | st.lists(json_pieces | st.text(max_size=1), max_size=8).map("".join))
def test_the_scanner_accepts_what_the_standard_reader_accepts(text: str) -> None:
    scanner = JsonScanner()
    accepted = all(scanner.step(char) for char in text) and scanner.is_complete
    try:
        json.loads(text)
        is_json = text == text.rstrip(" \t\n\r") and "NaN" not in text and "Infinity" not in text
    except ValueError:
        is_json = False
    assert accepted == is_json
