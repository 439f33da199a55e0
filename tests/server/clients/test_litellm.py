"""litellm cannot tell this server from OpenAI's."""

import json
from pathlib import Path
from typing import Any

import pytest
from client_process import client_process
from live_server import LiveServer

KEY = "a-key-for-clients"
ANSWER = "The capital of France is Paris."
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def told(keyed_chat: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    home: Path = tmp_path_factory.mktemp("litellm")
    client = client_process("NANOVLLM_LITELLM_PYTHON", home)
    return client.told("litellm_program.py", url=keyed_chat.url, key=KEY, tools=[WEATHER])


def test_a_completion_and_a_stream_are_the_same_answer(told: Any) -> None:
    assert told["content"] == told["rebuilt"] == told["as_vllm"] == ANSWER
    assert "".join(piece or "" for piece in told["pieces"]) == ANSWER
    assert told["usage"] == told["rebuilt_usage"]
    assert told["usage"]["total_tokens"] > told["usage"]["completion_tokens"] > 0
    assert told["finish_reason"] == "stop"


def test_asynchronous_completions(told: Any) -> None:
    assert told["asynchronous"] == [ANSWER, ANSWER]


def test_a_text_completion(told: Any) -> None:
    assert told["text"] == " Paris."


def test_a_forced_tool_call_streamed_or_not(told: Any) -> None:
    assert told["calls"] == told["streamed_calls"]
    assert told["call_finish_reason"] == "tool_calls"
    for call in told["calls"]:
        assert call["name"] == "get_weather"
        assert json.loads(call["arguments"])["city"] in ("Paris", "Rome")


def test_an_answer_in_the_form_of_a_pydantic_model(told: Any) -> None:
    assert set(told["parsed"]) == {"name", "is_capital"}


@pytest.mark.parametrize(
    ("mistake", "kind"),
    [
        ("key", "AuthenticationError"),
        ("model", "NotFoundError"),
        ("length", "ContextWindowExceededError"),
        ("value", "BadRequestError"),
    ],
)
def test_errors_are_litellms_own(told: Any, mistake: str, kind: str) -> None:
    assert told["errors"][mistake]["type"] == kind, told["errors"][mistake]["message"]
