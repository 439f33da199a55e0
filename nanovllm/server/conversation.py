"""Conversations as prompts: messages in, the text of the chat template out.

Text parts are joined by line ends, "developer" is another word for "system", arguments of earlier tool calls are given
to the template as objects: all as vLLM does it.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from nanovllm.async_llm import AsyncLLM
from nanovllm.server.errors import ApiError
from nanovllm.server.protocol.chat import Message, Tool

__all__ = ["render"]


def render(
    llm: AsyncLLM,
    messages: Sequence[Message],
    *,
    chat_template: str | None,
    tools: Sequence[Tool] | None = None,
    add_generation_prompt: bool | None = None,
    continue_final_message: bool | None = None,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The prompt. variables: for the template alone. Takes milliseconds: not for the event loop. Raises `ApiError` or
    `ChatTemplateError`."""
    if continue_final_message and add_generation_prompt:
        message = "add_generation_prompt and continue_final_message contradict each other; give one."
        raise ApiError(400, message, param="continue_final_message")
    told = [_for_template(message) for message in messages]
    marker = uuid.uuid4().hex if continue_final_message else ""
    if continue_final_message:
        told[-1] = {**told[-1], "content": told[-1]["content"] + marker}
    text = llm.render_chat(
        told,
        chat_template=chat_template,
        add_generation_prompt=not continue_final_message and add_generation_prompt is not False,
        tools=[tool.model_dump(exclude_none=True) for tool in tools] if tools else None,
        chat_template_kwargs=variables,
    )
    return _up_to(marker, text) if continue_final_message else text


def _up_to(marker: str, text: str) -> str:
    """What stands before the end of the last message, where the marker was put."""
    end = text.rfind(marker)
    if end < 0:
        message = "the chat template does not show the last message, so it cannot be continued."
        raise ApiError(400, message, param="continue_final_message")
    return text[:end]


def _for_template(message: Message) -> dict[str, Any]:
    told = message.model_dump(exclude_none=True, exclude={"content", "tool_calls"})
    told["role"] = "system" if message.role == "developer" else message.role
    told["content"] = _text(message)
    if message.tool_calls:
        told["tool_calls"] = [
            {
                "id": call.id,
                "type": call.type,
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    return told


def _text(message: Message) -> str:
    if isinstance(message.content, list):
        return "\n".join(part.text or part.refusal or "" for part in message.content)
    return message.content or ""


def _arguments(text: str) -> Any:
    """As an object; as the text itself where a model's earlier call was no JSON."""
    try:
        return json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text
