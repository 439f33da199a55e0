"""OpenAI's own Python client cannot tell this server from OpenAI's."""

import asyncio
from collections.abc import Iterator

import openai
import pytest
from live_server import LiveServer
from pydantic import BaseModel, Field

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


@pytest.fixture
def client(tiny_chat: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tiny_chat.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny-chat", messages=QUESTION, temperature=0)
    assert answer.choices[0].message.content == ANSWER
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details is not None


def test_a_streamed_chat_with_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny-chat", messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    assert chunks[-1].usage is not None
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_the_streaming_helper_adds_up_the_answer(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="tiny-chat", messages=QUESTION, temperature=0, logprobs=True, top_logprobs=2
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= set(kinds)
    assert final.choices[0].message.content == ANSWER
    logprobs = final.choices[0].logprobs
    assert logprobs is not None
    assert "".join(entry.token for entry in logprobs.content or ()).startswith(ANSWER)


def test_an_answer_is_parsed_into_a_model(client: openai.OpenAI) -> None:
    class City(BaseModel):
        name: str = Field(max_length=12)
        is_capital: bool

    parsed = client.chat.completions.parse(
        model="tiny-chat", messages=QUESTION, temperature=0, response_format=City, max_completion_tokens=256
    )
    assert isinstance(parsed.choices[0].message.parsed, City)


def test_completions_with_logprobs_and_echo(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="tiny-chat", prompt=["The capital of France is", "Two plus"], logprobs=1, echo=True, max_tokens=3, n=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.tokens is not None
        assert choice.logprobs.text_offset is not None
        assert choice.text.startswith("".join(choice.logprobs.tokens[:2]))
    text = "".join(
        chunk.choices[0].text
        for chunk in client.completions.create(
            model="tiny-chat", prompt="The capital of France is", stream=True, temperature=0, max_tokens=2
        )
    )
    assert text == " Paris."


def test_vllms_fields_travel_in_extra_body(client: openai.OpenAI) -> None:
    extra = {"structured_outputs": {"choice": ["red", "green"]}, "min_tokens": 1, "top_k": 5}
    answer = client.chat.completions.create(model="tiny-chat", messages=QUESTION, extra_body=extra)
    assert answer.choices[0].message.content in ("red", "green")


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id) == model
    assert model.id == "tiny-chat"


def test_errors_are_the_clients_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature") as bad:
        client.chat.completions.create(model="tiny-chat", messages=QUESTION, temperature=-1)
    assert (bad.value.param, bad.value.code, bad.value.type) == ("temperature", None, "invalid_request_error")
    with pytest.raises(openai.NotFoundError, match="'gpt-17' does not exist") as missing:
        client.chat.completions.create(model="gpt-17", messages=QUESTION)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-17")


def test_many_asynchronous_chats_at_once(tiny_chat: LiveServer) -> None:
    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{tiny_chat.url}/v1", api_key="none", max_retries=0) as client:

            async def ask(stream: bool) -> str:
                asked = {"model": "tiny-chat", "messages": QUESTION, "temperature": 0}
                if not stream:
                    answer = await client.chat.completions.create(**asked)
                    return answer.choices[0].message.content or ""
                chunks = await client.chat.completions.create(**asked, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

            return await asyncio.gather(*(ask(stream=i % 2 == 0) for i in range(24)))

    assert asyncio.run(main()) == [ANSWER] * 24
