"""Asks a server through langchain-openai and prints the answers. In: {"url", "key"} as JSON."""

import asyncio
import json
import sys
from typing import Any, Literal

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict, Field

settings = json.loads(sys.argv[1])
QUESTION = "What is the capital of France?"


class City(BaseModel):
    """A city."""

    model_config = ConfigDict(extra="forbid")  # else a small model goes on and on with properties of its own

    name: str = Field(max_length=12)
    is_capital: bool


@tool
def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather of a city."""
    return f"Sunny in {city}."


def model(**more: Any) -> ChatOpenAI:
    given = {"model": "tiny-chat", "temperature": 0, "max_tokens": 200, "max_retries": 0, "seed": 1, **more}
    return ChatOpenAI(base_url=f"{settings['url']}/v1", api_key=settings["key"], **given)


def added_up(chunks: Any) -> Any:
    whole = None
    for chunk in chunks:
        whole = chunk if whole is None else whole + chunk
    return whole


def round_trip() -> dict[str, Any]:
    """A call, its result, and the answer to both."""
    caller = model().bind_tools([get_weather], tool_choice="get_weather", strict=True)
    asked = HumanMessage("What is the weather in Paris?")
    called = caller.invoke([asked])
    (call,) = called.tool_calls
    result = get_weather.invoke(call)
    assert isinstance(result, ToolMessage)
    answer = model(max_tokens=8).bind_tools([get_weather]).invoke([asked, called, result])
    streamed = added_up(caller.stream([asked]))
    return {
        "call": {"name": call["name"], "args": call["args"]},
        "streamed_calls": [{"name": each["name"], "args": each["args"]} for each in streamed.tool_calls],
        "answer": {"type": type(answer).__name__, "content": answer.content},
    }


async def asynchronous() -> list[str]:
    answers = await model().abatch([QUESTION] * 3)
    pieces = [chunk.content async for chunk in model().astream(QUESTION)]
    return [*(answer.content for answer in answers), "".join(pieces)]


def main() -> dict[str, Any]:
    whole = model(logprobs=True, top_logprobs=2).invoke(QUESTION)
    assert isinstance(whole, AIMessage)
    streamed = added_up(model(stream_usage=True).stream(QUESTION))
    modes = ("json_schema", "function_calling", "json_mode")
    asked = "Tell me of Paris."
    structured = {mode: model().with_structured_output(City, method=mode) for mode in modes[:2]}
    json_mode = model().with_structured_output(None, method=modes[2])
    text = OpenAI(
        base_url=f"{settings['url']}/v1", api_key=settings["key"], model="tiny-chat", temperature=0, max_tokens=2
    )
    return {
        "content": whole.content,
        "finish_reason": whole.response_metadata["finish_reason"],
        "num_logprobs": len(whole.response_metadata["logprobs"]["content"]),
        "usage": whole.usage_metadata,
        "streamed": streamed.content,
        "streamed_usage": streamed.usage_metadata,
        "structured": {mode: runnable.invoke(asked).model_dump() for mode, runnable in structured.items()},
        "json_mode": isinstance(json_mode.invoke(asked), dict),
        "text": text.invoke("The capital of France is"),
        "asynchronous": asyncio.run(asynchronous()),
        **round_trip(),
    }


if __name__ == "__main__":
    print(json.dumps(main()))
