"""Whatever is sampled among the allowed tokens has the form that was asked for, and every such form can be sampled."""

import json
import random
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanovllm.structured_outputs import StructuredOutputsParams
from tests.structured.schemas import SCHEMAS
from tests.structured.walking import Setup, allowed_ids, byte_setup, tiny_chat_setup, walk


@pytest.fixture(scope="module", params=[byte_setup, tiny_chat_setup], ids=["bytes", "tiny-chat"])
def setup(request: pytest.FixtureRequest) -> Setup:
    make: Callable[[], Setup] = request.param
    return make()


def outputs(setup: Setup, params: StructuredOutputsParams, count: int, free_tokens: int = 60) -> list[str]:
    grammar = setup.compiler.compile(params)
    return [walk(setup, grammar, random.Random(seed), free_tokens)[1] for seed in range(count)]


def validate(text: str, schema: dict[str, Any]) -> None:
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    validator.validate(json.loads(text))


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_output_validates_against_its_schema(setup: Setup, name: str) -> None:
    for text in outputs(setup, StructuredOutputsParams(json=SCHEMAS[name]), 6):
        validate(text, SCHEMAS[name])


@pytest.mark.parametrize("name", ["nested", "recursive tree", "anything", "open object with properties"])
def test_every_output_without_white_space_validates_and_has_none(setup: Setup, name: str) -> None:
    params = StructuredOutputsParams(json=SCHEMAS[name], disable_any_whitespace=True)
    for text in outputs(setup, params, 6):
        validate(text, SCHEMAS[name])
        assert not re.search(r"\s", re.sub(r'"(\\.|[^"\\])*"', "a string", text).replace("a string", ""))


def test_white_space_follows_its_pattern(setup: Setup) -> None:
    params = StructuredOutputsParams(json={"type": "array", "items": {"type": "null"}}, whitespace_pattern=r"\n ?")
    texts = outputs(setup, params, 20)
    assert any(re.search(r"\s", text) for text in texts)
    for text in texts:
        assert not re.sub(r"\n ?", "", text).count(" ")
        validate(text, {"type": "array", "items": {"type": "null"}})


def test_json_object_gives_objects(setup: Setup) -> None:
    for text in outputs(setup, StructuredOutputsParams(json_object=True), 10):
        assert isinstance(json.loads(text), dict)


def test_a_schema_may_be_given_as_text(setup: Setup) -> None:
    schema = SCHEMAS["person"]
    assert setup.compiler.compile(StructuredOutputsParams(json=json.dumps(schema))) is setup.compiler.compile(
        StructuredOutputsParams(json=schema)
    )


def test_properties_come_in_the_order_of_the_schema(setup: Setup) -> None:
    names = ["zeta", "alpha", "mid", "beta"]
    schema = {"type": "object", "properties": {name: {"type": "null"} for name in names}, "required": names}
    params = StructuredOutputsParams(json=schema, disable_additional_properties=True)
    assert [list(json.loads(text)) for text in outputs(setup, params, 3)] == [names] * 3


def test_additional_properties_are_disabled_everywhere_but_where_the_schema_speaks(setup: Setup) -> None:
    inner = {"properties": {"properties": {"type": "null"}}, "type": "object"}
    open_inner = {**inner, "additionalProperties": {"type": "boolean"}}
    schema = {"type": "object", "properties": {"a": inner, "b": open_inner}, "required": ["a", "b"]}
    extra_in_b = False
    for text in outputs(setup, StructuredOutputsParams(json=schema, disable_additional_properties=True), 20):
        value = json.loads(text)
        validate(text, schema)
        assert set(value) == {"a", "b"}
        assert set(value["a"]) <= {"properties"}
        extra_in_b |= bool(set(value["b"]) - {"properties"})
    assert extra_in_b


REGEXES = [
    "a",
    "(yes|no|maybe)",
    r"\d{3}-\d{4}",
    "[A-Z][a-z]{2,10}( [A-Z][a-z]{2,10})?",
    r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    r"(\+|-)?[0-9]+(\.[0-9]+)?",
    "(é|日本|😀)+!",
    r"https?://[a-z]{1,8}\.(com|org)(/[a-z0-9]{1,4})*",
    "x*y?z+",
    r"/\*[a-z /]*\*/",
    "(?i)select [a-z]+ from [a-z]+",
]


@pytest.mark.parametrize("regex", REGEXES)
def test_every_output_matches_its_regex_in_full(setup: Setup, regex: str) -> None:
    for text in outputs(setup, StructuredOutputsParams(regex=regex), 8, free_tokens=40):
        assert re.fullmatch(regex, text), text


@given(choices=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5, unique=True), seed=st.integers(0, 99))
def test_every_output_is_one_of_the_choices(setup: Setup, choices: list[str], seed: int) -> None:
    grammar = setup.compiler.compile(StructuredOutputsParams(choice=choices))
    assert walk(setup, grammar, random.Random(seed))[1] in choices


def test_every_choice_can_come_out_also_one_that_begins_another(setup: Setup) -> None:
    choices = ["Paris", "Paris, France", "Berlin", "naïve", "<|im_end|>"]
    texts = outputs(setup, StructuredOutputsParams(choice=choices), 200)
    assert set(texts) == set(choices)


ARITHMETIC = r"""
start: sum
sum: product (("+" | "-") product)*
product: atom (("*" | "/") atom)*
atom: NUMBER | "(" sum ")"
NUMBER: /[1-9][0-9]{0,2}/
"""
ARITHMETIC_GBNF = r"""
root ::= product (("+" | "-") product)*
product ::= atom (("*" | "/") atom)*
atom ::= number | "(" root ")"
number ::= [1-9] [0-9]{0,2}
"""


@pytest.mark.parametrize("grammar", [ARITHMETIC, ARITHMETIC_GBNF], ids=["lark", "gbnf"])
def test_every_output_of_a_grammar_of_arithmetic_is_arithmetic(setup: Setup, grammar: str) -> None:
    for text in outputs(setup, StructuredOutputsParams(grammar=grammar), 10, free_tokens=20):
        assert re.fullmatch(r"[0-9+*/()-]+", text)
        compile(text, "output", "eval")


def test_an_output_of_the_right_form_is_never_refused(setup: Setup) -> None:
    """The other half: a sampler that wants to write this text can, byte by byte, with forced tokens as they come."""
    value = {"title": "Ein Stück Käse 🧀", "note": None}
    text = json.dumps(value, ensure_ascii=False)
    state = setup.compiler.compile(StructuredOutputsParams(json=SCHEMAS["pydantic optional"])).start()
    pieces = setup.tokenizer.inner_token_bytes()
    assert pieces is not None
    rest = text.encode()
    while rest:
        fitting = [i for i in allowed_ids(state.masks()[0].result()) if i < len(pieces) and rest.startswith(pieces[i])]
        fitting = [i for i in fitting if i not in setup.tokenizer.special_token_ids]
        assert fitting, rest
        longest = max(fitting, key=lambda i: len(pieces[i]))
        state.accept(longest)
        rest = rest[len(pieces[longest]) :]
    assert state.is_finished
