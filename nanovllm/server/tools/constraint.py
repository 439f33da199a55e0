"""tool_constraint: a choice that forces a call, as a grammar for the model's output.

In: tools and the choice among them, as in OpenAI's API. Out: the form of the output, in llguidance's Lark, whose rules
hold the functions' own schemas. Knows nothing about how the output is read.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nanovllm.errors import ConfigError, SamplingParamsError
from nanovllm.server.tools.formats import JSON_LIST, TOOL_FORMATS, ToolFormat, arguments_of
from nanovllm.structured_outputs import StructuredOutputsParams

__all__ = ["Tool", "ToolChoice", "forced_name", "format_for", "tool_constraint"]

Tool = Mapping[str, Any]
"""{"type": "function", "function": {"name", "parameters", ...}}; parameters: a JSON schema of an object."""

ToolChoice = str | Mapping[str, Any] | None
""""auto" (also None), "required", "none", or {"type": "function", "function": {"name"}}."""

_WHITESPACE = "[ ]?"
"""Between JSON tokens of forced arguments: a weak model would go on with white space for ever."""

_MAX_CALLS = 16
"""In one forced answer; a weak model would go on calling for ever."""


def forced_name(tool_choice: ToolChoice) -> str | None:
    """The one function that must be called."""
    return None if tool_choice is None or isinstance(tool_choice, str) else str(tool_choice["function"]["name"])


def format_for(tool_choice: ToolChoice, tool_parser: str | None) -> ToolFormat | None:
    """The form in which calls are to be expected; None = calls cannot be told from text. Raises `ConfigError`."""
    if tool_parser is not None and tool_parser not in TOOL_FORMATS:
        known = ", ".join(TOOL_FORMATS)
        raise ConfigError(f"tool_parser is {tool_parser!r}; it must be one of {known}, or None.")
    form = TOOL_FORMATS[tool_parser] if tool_parser is not None else None
    if tool_choice in (None, "auto") or (form is not None and form.frame is not None):
        return form
    name = forced_name(tool_choice)
    return JSON_LIST if name is None or form is not None else arguments_of(name)


def tool_constraint(
    tools: Sequence[Tool] | None, tool_choice: ToolChoice, tool_parser: str | None, parallel_tool_calls: bool
) -> StructuredOutputsParams | None:
    """The form that the output must have: at least one call for "required", exactly one of the named function, with
    arguments that obey the function's schema. None where no call is forced. parallel_tool_calls: whether "required"
    may be answered with several.

    Raises `SamplingParamsError` for "auto" without a parser, whose calls nobody would find, and for a name that is
    none of the tools'.
    """
    if not tools or tool_choice == "none":
        return None
    form = format_for(tool_choice, tool_parser)
    if tool_choice in (None, "auto"):
        if form is None:
            raise SamplingParamsError(
                'tool_choice is "auto", and this server cannot find calls in the model\'s text; start it with '
                f'--tool-parser ({", ".join(TOOL_FORMATS)}), or give tool_choice "required" or "none".'
            )
        return None
    name = forced_name(tool_choice)
    functions = [tool["function"] for tool in tools]
    chosen = [function for function in functions if name is None or function["name"] == name]
    if not chosen:
        known = ", ".join(function["name"] for function in functions)
        raise SamplingParamsError(f"tool_choice names {name!r}; the tools are {known}. Name one of them.")
    assert form is not None, "a forced call has a form"
    return _constraint(form, chosen, parallel=parallel_tool_calls and name is None)


def _constraint(form: ToolFormat, functions: Sequence[Mapping[str, Any]], *, parallel: bool) -> StructuredOutputsParams:
    if form.frame is None:
        (function,) = functions
        return StructuredOutputsParams(json=_schema(function), whitespace_pattern=_WHITESPACE)
    frame = form.frame
    calls = f"call ({_text(frame.separator)} call){{0,{_MAX_CALLS - 1}}}" if parallel else "call"
    rules = [
        "start: " + " ".join(part for part in (_text(frame.open), calls, _text(frame.close)) if part),
        "call: " + " | ".join(f"call_{i}" for i in range(len(functions))),
    ]
    for i, function in enumerate(functions):
        before = frame.before_name + json.dumps(function["name"], ensure_ascii=False) + frame.before_arguments
        rules.append(f"call_{i}: {_text(before)} arguments_{i} {_text(frame.after_arguments)}")
        schema = _schema(function)
        options = {"whitespace_pattern": _WHITESPACE, **schema.get("x-guidance", {})}
        rules.append(f"arguments_{i}: %json {json.dumps({**schema, 'x-guidance': options})}")
    return StructuredOutputsParams(grammar="\n".join(rules))


def _schema(function: Mapping[str, Any]) -> dict[str, Any]:
    """Of an object; a function without parameters takes none, as in OpenAI's API."""
    parameters = function.get("parameters")
    if parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return {**parameters, "type": "object"}


def _text(text: str) -> str:
    """As a string of a Lark grammar."""
    return json.dumps(text, ensure_ascii=False) if text else ""
