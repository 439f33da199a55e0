"""langchain-openai cannot tell this server from OpenAI's."""

from typing import Any

import pytest
from client_process import client_process
from live_server import LiveServer

KEY = "a-key-for-clients"
ANSWER = "The capital of France is Paris."


@pytest.fixture(scope="module")
def told(keyed_chat: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    client = client_process("NANOVLLM_LANGCHAIN_PYTHON", tmp_path_factory.mktemp("langchain"))
    return client.told("langchain_program.py", url=keyed_chat.url, key=KEY)


def test_an_answer_and_a_stream_are_the_same_and_cost_the_same(told: Any) -> None:
    assert told["content"] == told["streamed"] == ANSWER
    for name in ("input_tokens", "output_tokens", "total_tokens"):
        assert told["usage"][name] == told["streamed_usage"][name] > 0
    assert told["finish_reason"] == "stop"
    assert told["num_logprobs"] == told["usage"]["output_tokens"]


def test_batches_and_streams_without_waiting(told: Any) -> None:
    assert told["asynchronous"] == [ANSWER] * 4


def test_a_text_model(told: Any) -> None:
    assert told["text"] == " Paris."


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_an_answer_has_the_form_of_a_pydantic_model(told: Any, method: str) -> None:
    assert set(told["structured"][method]) == {"name", "is_capital"}


def test_an_answer_is_any_json_object(told: Any) -> None:
    assert told["json_mode"]


def test_a_tool_is_called_and_its_result_is_answered(told: Any) -> None:
    assert told["call"]["name"] == "get_weather"
    assert told["call"]["args"]["city"] in ("Paris", "Rome")
    assert told["streamed_calls"] == [told["call"]]
    assert told["answer"]["type"] == "AIMessage"
