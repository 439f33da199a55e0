"""What answers of both APIs have in common: their head, their usage, how they are sent and how they are documented."""

import time
import uuid
from typing import Any

from fastapi import Response
from pydantic import BaseModel

from nanovllm.server.context import ServerContext
from nanovllm.server.generation import UsageCounter
from nanovllm.server.protocol.base import ErrorResponse, PromptTokensDetails, Usage
from nanovllm.server.protocol.generation import GenerationRequest

__all__ = ["Head", "answer_docs", "error_docs", "head", "json_answer", "usage", "wants_usage"]

Head = dict[str, Any]
"""Fields that every chunk of one answer repeats."""


def head(prefix: str, request: GenerationRequest, context: ServerContext) -> Head:
    """Raises `ApiError` (404) for an unknown model."""
    return {
        "model": context.model_name(request.model),
        "id": f"{prefix}-{request.request_id or uuid.uuid4().hex}",
        "created": int(time.time()),
        "system_fingerprint": context.system_fingerprint,
    }


def usage(counter: UsageCounter) -> Usage:
    return Usage(
        prompt_tokens=counter.num_prompt_tokens,
        completion_tokens=counter.num_new_tokens,
        total_tokens=counter.num_prompt_tokens + counter.num_new_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=counter.num_cached_tokens),
    )


def wants_usage(request: GenerationRequest) -> tuple[bool, bool]:
    """Whether a stream tells the usage: at its end, and also with every chunk."""
    options = request.stream_options
    at_end = options is not None and bool(options.include_usage)
    return at_end, at_end and options is not None and bool(options.continuous_usage_stats)


def json_answer(answer: BaseModel) -> Response:
    """The answer as it is; FastAPI would check and copy it first."""
    return Response(answer.model_dump_json(), media_type="application/json")


def answer_docs(answer: type[BaseModel], chunk: type[BaseModel] | None = None) -> dict[int | str, dict[str, Any]]:
    """For OpenAPI: what a route answers, also as a stream where it has chunks, and its errors."""
    docs: dict[str, Any] = {"model": answer, "description": "The answer."}
    if chunk is not None:
        data = {"type": "string", "description": f"A {chunk.__name__} as JSON; or an error object; at the end [DONE]."}
        event = {"type": "object", "properties": {"data": data}, "required": ["data"]}
        docs["content"] = {"text/event-stream": {"itemSchema": event}}  # in the words of OpenAPI 3.2
    return {200: docs} | error_docs()


def error_docs() -> dict[int | str, dict[str, Any]]:
    """For OpenAPI: what a route answers instead."""
    return {
        "4XX": {"model": ErrorResponse, "description": "The request is at fault."},
        "5XX": {"model": ErrorResponse, "description": "The server is, or it has no room."},
    }
