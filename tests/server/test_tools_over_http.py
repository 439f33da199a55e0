"""Forced tool calls as a client sees them: whole and streamed answers are the same call."""

import json
from typing import Any

import jsonschema
import pytest
from event_stream import events_of
from live_server import LiveServer

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}


def body(choice: Any) -> dict[str, Any]:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    return {
        "messages": question,
        "tools": [TOOL],
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "temperature": 1.0,
        "seed": 3,
    }


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_forced_call_is_the_same_whole_and_streamed(tiny_chat: LiveServer, choice: Any) -> None:
    (whole,) = tiny_chat.answer("/v1/chat/completions", **body(choice))["choices"]
    assert whole["finish_reason"] == "tool_calls"
    assert whole["message"]["content"] is None
    (call,) = whole["message"]["tool_calls"]
    assert call["id"].startswith("call_")
    jsonschema.validate(json.loads(call["function"]["arguments"]), PARAMETERS)

    chunks = events_of(tiny_chat.post("/v1/chat/completions", **body(choice), stream=True).text)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    pieces = [piece for delta in deltas for piece in delta.get("tool_calls", [])]
    assert pieces[0]["id"].startswith("call_")
    assert pieces[0]["function"]["name"] == "get_weather"
    assert len(pieces) > 2, "the arguments come in pieces"
    assert "".join(piece["function"]["arguments"] for piece in pieces) == call["function"]["arguments"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert not any(delta.get("content") for delta in deltas)


def test_a_free_choice_without_a_parser_is_refused_with_the_way_out(tiny_chat: LiveServer) -> None:
    response = tiny_chat.post("/v1/chat/completions", **body("auto"))
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "tool_choice"
    assert "--tool-parser" in error["message"]


def test_tools_that_may_not_be_called_change_nothing(tiny_chat: LiveServer) -> None:
    (choice,) = tiny_chat.answer("/v1/chat/completions", **(body("none") | {"temperature": 0}))["choices"]
    assert "Paris" in choice["message"]["content"]
    assert "tool_calls" not in choice["message"]
