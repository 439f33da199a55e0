"""Prompts as token ids that fit: tokenized off the event loop where they are long, truncated where that was asked for.

In: texts or token ids of a request. Out: token ids, or an error that says how long the prompt is and how
long it may be.
"""

import asyncio

from nanovllm.plugins.interfaces import Tokenizer
from nanovllm.server.context import ServerContext
from nanovllm.server.errors import ApiError
from nanovllm.server.protocol.generation import GenerationRequest

__all__ = ["check_count", "encode", "fitted"]

_SHORT_TEXT = 256
"""Characters up to which a text is tokenized in the event loop: a thread and back costs more."""


async def encode(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """The token ids of `text`."""
    if len(text) <= _SHORT_TEXT:
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)
    return await asyncio.to_thread(tokenizer.encode, text, add_special_tokens=add_special_tokens)


def check_count(num_prompts: int, n: int, context: ServerContext, *, param: str) -> None:
    """Refuses more continuations in one request than the server's queue is meant for. Raises `ApiError`."""
    limit = context.settings.max_queued_requests
    if num_prompts * n > limit:
        message = f"the request asks for {num_prompts} x {n} continuations; this server allows at most {limit} at once."
        raise ApiError(400, message, param=param)


def fitted(
    token_ids: list[int],
    request: GenerationRequest,
    context: ServerContext,
    *,
    asked_tokens: int | None,
    param: str,
) -> list[int]:
    """The prompt, truncated as asked. asked_tokens: continuation that was asked for explicitly, which must fit too.
    param: the request's field that holds the prompt. Raises `ApiError`."""
    limit = context.llm.max_model_len
    token_ids = _truncated(token_ids, request, limit - (asked_tokens or 1))
    longest = context.settings.max_prompt_tokens
    if longest is not None and len(token_ids) > longest:
        message = f"the prompt has {len(token_ids)} tokens; this server allows at most {longest}. Shorten it."
        raise ApiError(400, message, param=param, code="context_length_exceeded")
    if len(token_ids) + (asked_tokens or 1) > limit:
        message = (
            f"this model's maximum context length is {limit} tokens; the prompt has {len(token_ids)} and the "
            f"continuation may have {asked_tokens or 1}. Shorten the prompt, lower max_tokens, or use "
            "truncate_prompt_tokens."
        )
        raise ApiError(400, message, param=param, code="context_length_exceeded")
    return token_ids


def _truncated(token_ids: list[int], request: GenerationRequest, room: int) -> list[int]:
    keep = request.truncate_prompt_tokens
    if keep is None:
        return token_ids
    keep = max(room, 0) if keep == -1 else keep
    if keep == 0:
        raise ApiError(400, "no token of the prompt would be kept; give at least 1.", param="truncate_prompt_tokens")
    return token_ids[:keep] if request.truncation_side == "right" else token_ids[-keep:]
