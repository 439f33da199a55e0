"""StructuredOutputsParams: one form, of the right type, with options that have a meaning for it."""

from typing import Any

import pytest

from nanovllm.errors import SamplingParamsError
from nanovllm.structured_outputs import StructuredOutputsParams

SCHEMA = {"type": "object"}


@pytest.mark.parametrize(
    "fields",
    [
        {"json": SCHEMA},
        {"json": '{"type": "object"}', "disable_any_whitespace": True, "disable_additional_properties": True},
        {"json": SCHEMA, "json_object": False, "whitespace_pattern": " ?"},
        {"regex": "a+"},
        {"choice": ["a", "b"]},
        {"choice": ("a",)},
        {"grammar": 'start: "a"'},
        {"json_object": True, "whitespace_pattern": "[ \n]"},
    ],
)
def test_one_form_with_its_options_is_taken(fields: dict[str, Any]) -> None:
    StructuredOutputsParams(**fields)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "exactly one"),
        ({"json_object": False}, "exactly one"),
        ({"regex": "a", "json": SCHEMA}, "json and regex"),
        ({"choice": ["a"], "json_object": True}, "choice and json_object"),
        ({"regex": ""}, "regex"),
        ({"regex": 3}, "regex"),
        ({"regex": "\ud800"}, "regex"),
        ({"grammar": ""}, "grammar"),
        ({"grammar": b"start"}, "grammar"),
        ({"choice": []}, "choice"),
        ({"choice": "ab"}, "choice"),
        ({"choice": ["a", ""]}, "choice"),
        ({"choice": ["a", 1]}, "choice"),
        ({"choice": {"a", "b"}}, "choice"),
        ({"json": "{"}, "JSON schema"),
        ({"json": "true"}, "must be an object"),
        ({"json": [SCHEMA]}, "must be an object"),
        ({"json": {"const": {1, 2}}}, "JSON schema"),
        ({"json": {"const": float("nan")}}, "JSON schema"),
        ({"json": '{"a":' * 10_000}, "JSON schema"),
        ({"json_object": "yes"}, "json_object"),
        ({"json": SCHEMA, "disable_any_whitespace": "no"}, "disable_any_whitespace"),
        ({"json": SCHEMA, "disable_any_whitespace": True, "whitespace_pattern": " "}, "contradict"),
        ({"json": SCHEMA, "whitespace_pattern": ""}, "whitespace_pattern"),
        ({"regex": "a", "disable_any_whitespace": True}, "json and json_object only"),
        ({"choice": ["a"], "whitespace_pattern": " "}, "json and json_object only"),
        ({"json_object": True, "disable_additional_properties": True}, "json only"),
    ],
)
def test_anything_else_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(SamplingParamsError, match=named):
        StructuredOutputsParams(**fields)


@pytest.mark.parametrize("name", ["structural_tag", "backend"])
def test_what_is_not_honoured_does_not_exist(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        StructuredOutputsParams(**{"regex": "a", name: "x"})


def test_the_schema_is_copied() -> None:
    schema = {"type": "object", "properties": {"a": {}}}
    StructuredOutputsParams(json=schema).json_schema()["properties"].clear()
    assert schema["properties"] == {"a": {}}
