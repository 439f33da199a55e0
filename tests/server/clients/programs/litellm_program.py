"""Asks a server through litellm and prints the answers. In: {"url", "key", "tools"} as JSON."""

import asyncio
import json
import sys
from typing import Any

import litellm
from pydantic import BaseModel, Field

settings = json.loads(sys.argv[1])
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


class City(BaseModel):
    name: str = Field(max_length=12)
    is_capital: bool


def options(**more: Any) -> dict[str, Any]:
    provider = more.pop("provider", "openai")
    return {
        "model": f"{provider}/tiny-chat",
        "api_base": f"{settings['url']}/v1",
        "api_key": settings["key"],
        "messages": QUESTION,
        "temperature": 0,
        "num_retries": 0,
        **more,
    }


def tool_calls(message: Any) -> list[dict[str, str]]:
    return [{"name": call.function.name, "arguments": call.function.arguments} for call in message.tool_calls or ()]


def error_of(**more: Any) -> dict[str, Any]:
    try:
        litellm.completion(**options(**more))
    except Exception as error:  # the test looks at which it is
        return {"type": type(error).__name__, "message": str(error)}
    return {"type": None, "message": ""}


async def asynchronous() -> list[str]:
    whole = await litellm.acompletion(**options())
    stream = await litellm.acompletion(**options(stream=True))
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    return [whole.choices[0].message.content, "".join(pieces)]


def main() -> dict[str, Any]:
    whole = litellm.completion(**options())
    chunks = list(litellm.completion(**options(stream=True, stream_options={"include_usage": True})))
    rebuilt = litellm.stream_chunk_builder(chunks, messages=QUESTION)
    forced = {"tools": settings["tools"], "tool_choice": "required", "max_tokens": 200, "seed": 1}
    called = litellm.completion(**options(**forced))
    call_chunks = list(litellm.completion(**options(stream=True, **forced)))
    streamed_call = litellm.stream_chunk_builder(call_chunks, messages=QUESTION)
    parsed = litellm.completion(**options(response_format=City, max_tokens=256))
    text = litellm.text_completion(
        model="openai/tiny-chat",
        prompt="The capital of France is",
        max_tokens=2,
        temperature=0,
        api_base=f"{settings['url']}/v1",
        api_key=settings["key"],
    )
    return {
        "content": whole.choices[0].message.content,
        "usage": whole.usage.model_dump(include={"prompt_tokens", "completion_tokens", "total_tokens"}),
        "pieces": [chunk.choices[0].delta.content for chunk in chunks if chunk.choices],
        "rebuilt": rebuilt.choices[0].message.content,
        "rebuilt_usage": rebuilt.usage.model_dump(include={"prompt_tokens", "completion_tokens", "total_tokens"}),
        "finish_reason": rebuilt.choices[0].finish_reason,
        "calls": tool_calls(called.choices[0].message),
        "call_finish_reason": called.choices[0].finish_reason,
        "streamed_calls": tool_calls(streamed_call.choices[0].message),
        "parsed": City.model_validate_json(parsed.choices[0].message.content).model_dump(),
        "text": text.choices[0].text,
        "as_vllm": litellm.completion(**options(provider="hosted_vllm")).choices[0].message.content,
        "asynchronous": asyncio.run(asynchronous()),
        "errors": {
            "key": error_of(api_key="wrong"),
            "model": error_of(model="openai/gpt-17"),
            "length": error_of(messages=[{"role": "user", "content": "word " * 4000}]),
            "value": error_of(temperature=-1),
        },
    }


if __name__ == "__main__":
    print(json.dumps(main()))
