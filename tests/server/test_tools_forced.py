"""Calls that a request forces: what the model in the box writes then is a call that obeys the function's schema."""

import json
from typing import Any

import jsonschema
import pytest

from nanovllm import LLM, FinishReason, SamplingParams
from nanovllm.errors import SamplingParamsError
from nanovllm.server.chat_parser import (
    ContentDelta,
    ToolArgumentsDelta,
    ToolCallStart,
    make_chat_parser,
    tool_constraint,
)
from nanovllm.server.tools.formats import TOOL_FORMATS

WEATHER = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"city": {"enum": ["Paris", 'a "quoted" place', "Köln"]}},
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
]
SCHEMAS = {"get_weather": WEATHER, "now": {"type": "object", "maxProperties": 0}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}


def answer(library: LLM, choice: Any, form: str | None, *, parallel: bool, seed: int) -> list[tuple[str, Any]]:
    """The complete calls of one sampled answer, which holds nothing else."""
    constraint = tool_constraint(TOOLS, choice, form, parallel)
    params = SamplingParams(temperature=1.5, max_tokens=400, seed=seed, structured_outputs=constraint)
    completion = library.generate("What is the capital of France?", params)[0].outputs[0]
    parser = make_chat_parser(tools=TOOLS, tool_choice=choice, tool_parser=form, reasoning_parser=None, prompt="")
    events = parser.feed(completion.text) + parser.finish()
    assert not [event for event in events if isinstance(event, ContentDelta)], completion.text
    starts = [event for event in events if isinstance(event, ToolCallStart)]
    if completion.finish_reason is FinishReason.LENGTH:
        starts.pop()  # which may be incomplete
    made = []
    for start in starts:
        pieces = [e.text for e in events if isinstance(e, ToolArgumentsDelta) and e.index == start.index]
        made.append((start.name, json.loads("".join(pieces))))
    assert made, completion.text
    return made


@pytest.mark.parametrize("form", [*TOOL_FORMATS, None])
@pytest.mark.parametrize("parallel", [False, True])
def test_required_gives_calls_that_obey_their_schemas(library: LLM, form: str | None, parallel: bool) -> None:
    for seed in range(3):
        calls = answer(library, "required", form, parallel=parallel, seed=seed)
        assert 1 <= len(calls) <= (16 if parallel else 1)
        for name, arguments in calls:
            jsonschema.validate(arguments, SCHEMAS[name])


@pytest.mark.parametrize("form", [*TOOL_FORMATS, None])
def test_a_named_function_is_called_once(library: LLM, form: str | None) -> None:
    (call,) = answer(library, NAMED, form, parallel=True, seed=1)
    assert call[0] == "get_weather"
    jsonschema.validate(call[1], WEATHER)


@pytest.mark.parametrize(("tools", "choice"), [(None, "required"), ([], "auto"), (TOOLS, "none"), (TOOLS, "auto")])
def test_a_free_choice_forces_nothing(tools: Any, choice: str) -> None:
    assert tool_constraint(tools, choice, "hermes", True) is None


def test_a_choice_that_nobody_could_follow_is_refused() -> None:
    with pytest.raises(SamplingParamsError, match="--tool-parser"):
        tool_constraint(TOOLS, "auto", None, True)
    with pytest.raises(SamplingParamsError, match=r"'nope'.*get_weather, now"):
        tool_constraint(TOOLS, {"type": "function", "function": {"name": "nope"}}, "hermes", True)
