"""grammar_text: StructuredOutputsParams in, the text of a grammar as llguidance reads it out.

Knows nothing about tokens. Two requests that want the same thing get the same text, so it serves as a key.
Needs the `structured` extra.
"""

import json
from typing import TYPE_CHECKING, Any

from nanovllm.errors import SamplingParamsError
from nanovllm.structured_outputs import StructuredOutputsParams

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

__all__ = ["grammar_text"]


def grammar_text(params: StructuredOutputsParams) -> str:
    """Raises `SamplingParamsError` where llguidance cannot even read it; the rest shows when it is compiled."""
    try:
        return _text(params)
    except (ValueError, RecursionError) as error:
        raise SamplingParamsError(
            f"this structured_outputs cannot be read: {error}. Correct the part named."
        ) from error


def _text(params: StructuredOutputsParams) -> str:
    from llguidance import LLMatcher, grammar_from

    if params.regex is not None:
        return LLMatcher.grammar_from_regex(params.regex)
    if params.choice is not None:
        return "start: " + " | ".join(json.dumps(text) for text in params.choice)
    if params.grammar is not None:
        return grammar_from("grammar", params.grammar)
    schema = params.json_schema() if params.json is not None else {"type": "object"}
    if params.disable_additional_properties:
        _close_objects(schema)
    return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_json_options(params))


def _json_options(params: StructuredOutputsParams) -> "JsonCompileOptions":
    if params.disable_any_whitespace:
        return {"whitespace_flexible": False}
    return {} if params.whitespace_pattern is None else {"whitespace_pattern": params.whitespace_pattern}


_SCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_SCHEMA_OR_LIST = (
    *("items", "prefixItems", "additionalItems", "contains", "additionalProperties", "propertyNames"),
    *("allOf", "anyOf", "oneOf", "not", "if", "then", "else"),
)


def _close_objects(schema: Any) -> None:
    """Writes "additionalProperties": false into `schema` and the schemas in it that list properties without saying."""
    if isinstance(schema, list):
        for entry in schema:
            _close_objects(entry)
    if not isinstance(schema, dict):
        return
    for keyword in _SCHEMAS_BY_NAME:
        named = schema.get(keyword)
        _close_objects(list(named.values()) if isinstance(named, dict) else None)
    for keyword in _SCHEMA_OR_LIST:
        _close_objects(schema.get(keyword))
    if "properties" in schema or "patternProperties" in schema:
        schema.setdefault("additionalProperties", False)
