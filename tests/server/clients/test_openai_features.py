"""What else OpenAI's client offers: helpers, raw responses, tools from pydantic models, its errors and its retries."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import closing
from typing import Literal

import openai
import pytest
from live_server import LiveServer, live_server
from mock_llms import PoisonedRunner, mock_llm, predicted
from pydantic import BaseModel, ConfigDict, Field

KEY = "a-key-for-clients"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


class City(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=12)
    is_capital: bool


class GetWeather(BaseModel):
    """The weather of a city."""

    model_config = ConfigDict(extra="forbid")

    city: Literal["Paris", "Rome"]


@pytest.fixture
def client(keyed_chat: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{keyed_chat.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def test_a_stream_is_parsed_into_a_model(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="tiny-chat", messages=QUESTION, response_format=City, max_completion_tokens=200, seed=1
    ) as stream:
        done = [event for event in stream if event.type == "content.done"]
    assert isinstance(done[0].parsed, City)
    assert stream.get_final_completion().choices[0].message.parsed == done[0].parsed


def test_a_tool_made_of_a_model_is_called_and_its_result_answered(client: openai.OpenAI) -> None:
    tools = [openai.pydantic_function_tool(GetWeather)]
    parsed = client.chat.completions.parse(
        model="tiny-chat", messages=QUESTION, tools=tools, tool_choice="required", parallel_tool_calls=False, seed=1
    )
    (choice,) = parsed.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls
    (call,) = choice.message.tool_calls
    assert isinstance(call.function.parsed_arguments, GetWeather)
    result = {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}
    goes_on = [*QUESTION, choice.message, result]
    answer = client.chat.completions.create(model="tiny-chat", messages=goes_on, tools=tools, max_tokens=8)
    assert answer.choices[0].message.content


def test_events_of_a_streamed_tool_call(client: openai.OpenAI) -> None:
    tools = [openai.pydantic_function_tool(GetWeather)]
    with client.chat.completions.stream(
        model="tiny-chat", messages=QUESTION, tools=tools, tool_choice="required", parallel_tool_calls=False, seed=1
    ) as stream:
        events = list(stream)
    deltas = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    (done,) = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert "".join(event.arguments_delta for event in deltas) == done.arguments
    assert isinstance(done.parsed_arguments, GetWeather)
    assert json.loads(done.arguments) == done.parsed_arguments.model_dump()


def test_raw_responses_show_the_id_of_the_request(client: openai.OpenAI) -> None:
    headers = {"X-Request-Id": "mine-1"}
    raw = client.chat.completions.with_raw_response.create(
        model="tiny-chat", messages=QUESTION, temperature=0, extra_headers=headers
    )
    assert raw.headers["x-request-id"] == raw.request_id == "mine-1"
    assert raw.parse().choices[0].message.content == ANSWER
    answer = client.chat.completions.create(model="tiny-chat", messages=QUESTION, max_tokens=1)
    assert answer._request_id
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny-chat", messages=QUESTION, top_p=7)
    assert refused.value.request_id


def test_a_streamed_raw_response_is_closed_half_way(keyed_chat: LiveServer) -> None:
    async def main() -> str:
        async with (
            openai.AsyncOpenAI(base_url=f"{keyed_chat.url}/v1", api_key=KEY, max_retries=0) as client,
            client.chat.completions.with_streaming_response.create(
                model="tiny-chat", messages=QUESTION, stream=True, extra_body={"ignore_eos": True}
            ) as response,
        ):
            async for line in response.iter_lines():
                return line
        return ""

    assert asyncio.run(main()).startswith("data: {")


def test_a_wrong_key_and_an_api_that_there_is_not(client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        client.with_options(api_key="wrong").models.list()
    assert refused.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="tiny-chat", input="a text")
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="tiny-chat", input="a text")
    with pytest.raises(openai.BadRequestError) as too_long:
        client.chat.completions.create(model="tiny-chat", messages=[{"role": "user", "content": "word " * 4000}])
    assert too_long.value.code == "context_length_exceeded"


def test_a_used_up_quota_and_a_server_that_shuts_down(tiny_chat: LiveServer) -> None:
    with live_server(tiny_chat.llm, requests_per_minute=1) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        with client:
            client.completions.create(model="tiny-chat", prompt="One", max_tokens=1)
            with pytest.raises(openai.RateLimitError) as refused:
                client.completions.create(model="tiny-chat", prompt="Two", max_tokens=1)
            assert int(refused.value.response.headers["retry-after"]) >= 1
    with live_server(tiny_chat.llm) as server:
        server.admission.drain()
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        with client, pytest.raises(openai.InternalServerError) as draining:
            client.completions.create(model="tiny-chat", prompt="One", max_tokens=1)
        assert draining.value.status_code == 503


@pytest.mark.parametrize("stream", [False, True])
def test_a_backend_that_fails_in_mid_answer_is_an_error_and_no_short_answer(stream: bool) -> None:
    prompt = [5, 6, 7]
    poison = predicted(prompt, 8)[4]
    asked = {"model": "mock", "prompt": prompt, "max_tokens": 20, "temperature": 0, "extra_body": {"ignore_eos": True}}
    with closing(mock_llm(PoisonedRunner(poison))) as llm, live_server(llm) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        with client, pytest.raises(openai.APIError, match=r"fell off the bus|server failed") as failed:
            list(client.completions.create(**asked, stream=stream))
    assert isinstance(failed.value, openai.InternalServerError) == (not stream)
