"""GrammarCompiler: what it refuses and how, and that nothing which it is given can bring it down."""

import functools
import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanovllm.engine.grammar import GrammarCompiler
from nanovllm.errors import SamplingParamsError
from nanovllm.structured_outputs import StructuredOutputsParams
from tests.structured.walking import ByteTokenizer, Setup, allowed_ids, byte_setup


@pytest.fixture(scope="module")
def setup() -> Setup:
    return byte_setup()


DEEP = functools.reduce(lambda inner, _: {"items": inner}, range(600), {})

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a regex that is none": ({"regex": "(a"}, "unclosed group"),
    "a regex that nothing matches": ({"regex": r"a[^\s\S]"}, "no output"),
    "a regex with look-ahead": ({"regex": "(?=a)b"}, "look"),
    "a regex with a back reference": ({"regex": r"(a)\1"}, "backreferences"),
    "a grammar that is none": ({"grammar": "start: ("}, "Expected|expected"),
    "a grammar with an unknown rule": ({"grammar": "start: foo"}, "foo"),
    "a grammar without a start": ({"grammar": 'begin: "a"'}, "begin"),
    "a GBNF grammar that is none": ({"grammar": 'root ::= "a" | ??'}, "GBNF"),
    "a schema without an instance": ({"json": {"type": "string", "minLength": 3, "maxLength": 2}}, "minLength"),
    "an empty enum": ({"json": {"enum": []}}, "Unsatisfiable|empty"),
    "a contradiction": ({"json": {"allOf": [{"type": "string"}, {"type": "null"}]}}, "incompatible"),
    "an unknown type": ({"json": {"type": "strin"}}, "strin"),
    "not": ({"json": {"not": {"type": "string"}}}, "not"),
    "if": ({"json": {"if": {}, "then": {}}}, "if"),
    "uniqueItems": ({"json": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
    "an unknown format": ({"json": {"type": "string", "format": "zork"}}, "zork"),
    "a reference to nowhere": ({"json": {"$ref": "#/$defs/x"}}, "x"),
    "a reference to the network": ({"json": {"$ref": "http://example.com/schema"}}, "example"),
    "a schema that is only itself": ({"json": {"$ref": "#"}}, "no output"),
    "a pattern with look-ahead": ({"json": {"type": "string", "pattern": "(?=a)"}}, "look"),
    "a lone surrogate": ({"json": {"const": "\ud800"}}, "cannot be read"),
    "a broken white space pattern": ({"json": {}, "whitespace_pattern": "("}, "unclosed"),
    "nested too deeply": ({"json": DEEP, "disable_additional_properties": True}, "recursion"),
    "too long": ({"regex": "a" * 200_000}, "200"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_the_reason_and_the_compiler_goes_on(setup: Setup, name: str) -> None:
    fields, reason = REFUSED[name]
    with pytest.raises(SamplingParamsError, match=reason) as refusal:
        setup.compiler.compile(StructuredOutputsParams(**fields))
    assert len(str(refusal.value)) < 1000
    state = setup.compiler.compile(StructuredOutputsParams(regex="a|b")).start()
    assert allowed_ids(state.masks()[0].result()) == [ord("a"), ord("b")]


def chain(count: int, link: str, last: str) -> str:
    return "\n".join(["start: a0", *(link.format(i, i + 1) for i in range(count)), last.format(count)])


@pytest.mark.parametrize(
    "fields",
    [
        {"grammar": chain(7000, "a{}:a{}", 'a{}: "b"')},
        {"grammar": chain(6000, 'A{}: "x" A{}', 'A{}: "b"').replace("a0", "A0")},
        {"grammar": "start: " + "(" * 60_000 + '"a"' + ")" * 60_000},
        {"regex": "(" * 60_000 + "a" + ")" * 60_000},
        {
            "json": {
                "$ref": "#/$defs/0",
                "$defs": {str(i): {"items": {"$ref": f"#/$defs/{i + 1}"}} for i in range(2500)},
            }
        },
        {"regex": "((a{1,1000}){1,1000}){1,1000}"},
        {"choice": [f"choice {i}" for i in range(5000)]},
    ],
    ids=["rules", "terminals", "parentheses", "groups", "references", "repetitions", "choices"],
)
def test_depth_and_size_do_not_end_the_process(setup: Setup, fields: dict[str, Any]) -> None:
    """llguidance recurses along rules: 2,600 of them overflow the usual stack, and that cannot be caught."""
    try:
        state = setup.compiler.compile(StructuredOutputsParams(**fields)).start()
    except SamplingParamsError:
        return
    assert allowed_ids(state.masks()[0].result())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just("string") | st.just("#"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["type", "items", "properties", "anyOf", "allOf", "$ref", "enum", "const", "minimum", "maxLength", "pattern",
         "required", "additionalProperties", "format", "prefixItems", "x-guidance", "$defs", "a"]), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
forms = st.one_of(
    st.fixed_dictionaries({"regex": st.text(alphabet="ab()[]{}*+?|\\^$.-1,\n/", min_size=1, max_size=12)}),
    st.fixed_dictionaries({"grammar": st.text(min_size=1, max_size=20)}),
    st.fixed_dictionaries({"grammar": st.text(alphabet='ab"/|()*+?[]\\%~', max_size=12).map("start: {}".format)}),
    st.fixed_dictionaries({"choice": st.lists(st.text(min_size=1), min_size=1, max_size=3)}),
    st.fixed_dictionaries({"json": json_values}),
)


@given(fields=forms)
def test_whatever_it_is_given_it_compiles_or_refuses_it(setup: Setup, fields: dict[str, Any]) -> None:
    try:
        grammar = setup.compiler.compile(StructuredOutputsParams(**fields))
    except SamplingParamsError:
        return
    assert allowed_ids(grammar.start().masks()[0].result())


def test_the_same_form_is_compiled_once(setup: Setup) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    first = setup.compiler.compile(StructuredOutputsParams(json=schema))
    assert setup.compiler.compile(StructuredOutputsParams(json=json.dumps(schema))) is first
    assert setup.compiler.compile(StructuredOutputsParams(json=schema, disable_any_whitespace=True)) is not first


def test_without_llguidance_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(SamplingParamsError, match=r"pip install 'nanovllm\[structured\]'"):
        GrammarCompiler(ByteTokenizer(), 300, (256,)).compile(StructuredOutputsParams(regex="a"))


def test_a_model_without_an_end_of_sequence_token_is_refused() -> None:
    with pytest.raises(SamplingParamsError, match="end-of-sequence"):
        GrammarCompiler(ByteTokenizer(), 300, ()).compile(StructuredOutputsParams(regex="a"))
    with pytest.raises(SamplingParamsError, match="end-of-sequence"):
        GrammarCompiler(ByteTokenizer(), 256, (256,)).compile(StructuredOutputsParams(regex="a"))
