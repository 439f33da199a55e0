"""Tool calls and reasoning in the answers of /v1/chat/completions, as OpenAI's client reads them."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from event_stream import events_of
from live_server import LiveServer, live_server

URL = "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Paris", "Rome"]},
                "days": {"type": "integer", "maximum": 9},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time"}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
TOOLS: dict[str, Any] = {
    "messages": QUESTION,
    "tools": [CLOCK, WEATHER],
    "temperature": 1,
    "seed": 4,
    "max_tokens": 200,
}


@pytest.fixture(scope="module")
def server(tiny_chat: LiveServer) -> Iterator[LiveServer]:
    """The model in the box, whose text is read for hermes' calls and for thoughts."""
    with live_server(tiny_chat.llm, tool_parser="hermes", reasoning_parser="think") as server:
        yield server


def streamed_calls(chunks: list[Any]) -> list[dict[str, str]]:
    """Calls as their deltas make them: name and id come first and once, then arguments piece by piece."""
    calls: list[dict[str, str]] = []
    for chunk in chunks:
        for choice in chunk["choices"]:
            for delta in choice["delta"].get("tool_calls", []):
                if delta["index"] == len(calls):
                    assert delta["type"] == "function"
                    calls.append({"id": delta["id"], "name": delta["function"]["name"], "arguments": ""})
                else:
                    assert "id" not in delta
                    assert "name" not in delta["function"]
                calls[delta["index"]]["arguments"] += delta["function"]["arguments"]
    return calls


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_forced_call_obeys_the_schema_streamed_or_not(server: LiveServer, choice: Any) -> None:
    (whole,) = server.answer(URL, **TOOLS, tool_choice=choice)["choices"]
    assert whole["finish_reason"] == "tool_calls"
    assert whole["message"]["content"] is None
    chunks = events_of(server.post(URL, **TOOLS, tool_choice=choice, stream=True).text)
    streamed = streamed_calls(chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    calls = [call["function"] for call in whole["message"]["tool_calls"]]
    assert calls == [{"name": call["name"], "arguments": call["arguments"]} for call in streamed]
    assert len({call["id"] for call in streamed}) == len(streamed) >= 1
    for call in calls:
        arguments = json.loads(call["arguments"])
        assert call["name"] in ("get_time", "get_weather") if choice == "required" else call["name"] == "get_weather"
        assert call["name"] != "get_weather" or arguments["city"] in ("Paris", "Rome")


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_of_the_models_own_will_is_found_in_its_text(server: LiveServer, stream: bool) -> None:
    arguments = '{"city": "Rome"}'
    text = f'<tool_call>\n{{"name": "get_weather", "arguments": {arguments}}}\n</tool_call>'
    response = server.post(URL, **TOOLS, structured_outputs={"choice": [text]}, stream=stream)
    if stream:
        (call,) = streamed_calls(events_of(response.text))
        told = (call["name"], call["arguments"])
    else:
        (choice,) = response.json()["choices"]
        (made,) = choice["message"]["tool_calls"]
        assert choice["finish_reason"] == "tool_calls"
        told = (made["function"]["name"], made["function"]["arguments"])
    assert told == ("get_weather", arguments)


def test_without_a_choice_of_tools_their_text_is_text(server: LiveServer) -> None:
    text = '<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call>'
    (choice,) = server.answer(URL, **TOOLS, tool_choice="none", structured_outputs={"choice": [text]})["choices"]
    assert choice["message"]["content"] == text
    assert choice["finish_reason"] == "stop"
    assert "tool_calls" not in choice["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("include", [None, True, False])
def test_thoughts_are_told_apart_from_the_answer(server: LiveServer, stream: bool, include: bool | None) -> None:
    body = {
        "messages": QUESTION,
        "structured_outputs": {"choice": ["<think>Sun or rain?</think>Sun."]},
        "max_tokens": 99,
    }
    response = server.post(URL, **body, include_reasoning=include, stream=stream)
    if stream:
        deltas = [choice["delta"] for chunk in events_of(response.text) for choice in chunk["choices"]]
        content = "".join(delta.get("content", "") for delta in deltas)
        thoughts = "".join(delta.get("reasoning_content", "") for delta in deltas)
    else:
        message = response.json()["choices"][0]["message"]
        content, thoughts = message["content"], message.get("reasoning_content", "")
    assert content == "Sun."
    assert thoughts == ("" if include is False else "Sun or rain?")


def test_json_is_the_answer_also_where_the_model_is_expected_to_think_first(tiny_chat: LiveServer) -> None:
    schema = {"type": "object", "properties": {"sky": {"enum": ["blue"]}}, "required": ["sky"]}
    form = {"type": "json_schema", "json_schema": {"name": "sky", "schema": schema | {"additionalProperties": False}}}
    with live_server(tiny_chat.llm, reasoning_parser="deepseek_r1") as server:
        (choice,) = server.answer(URL, messages=QUESTION, response_format=form, max_tokens=30)["choices"]
    assert json.loads(choice["message"]["content"]) == {"sky": "blue"}
    assert "reasoning_content" not in choice["message"]


def test_calls_that_nobody_would_find_are_refused(tiny_chat: LiveServer) -> None:
    response = tiny_chat.post(URL, **TOOLS)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tool_choice"
    unknown = {"type": "function", "function": {"name": "get_tides"}}
    response = tiny_chat.post(URL, **TOOLS, tool_choice=unknown)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tool_choice"
    assert tiny_chat.answer(URL, **TOOLS, tool_choice=NAMED)["choices"][0]["message"]["tool_calls"]


def test_openais_client_adds_up_a_streamed_call_and_goes_on(server: LiveServer) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        with client.chat.completions.stream(
            model="tiny-chat", messages=QUESTION, tools=[WEATHER], tool_choice="required", max_tokens=200, seed=1
        ) as stream:
            message = stream.get_final_completion().choices[0].message
        assert message.tool_calls
        call = message.tool_calls[0]
        assert call.function.name == "get_weather"
        result = {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}
        asked = [*QUESTION, message.model_dump(exclude_none=True, exclude={"parsed"}), result]
        answer = client.chat.completions.create(model="tiny-chat", messages=asked, max_tokens=8, tools=[WEATHER])
        assert answer.choices[0].message.content is not None
