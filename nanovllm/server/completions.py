"""POST /v1/completions: continues prompts, each n times; choice `i * n + j` is the j-th of prompt i.

In: CompletionRequest. Out: a Completion, or events with a CompletionChunk each.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from fastapi import APIRouter, Request, Response

from nanovllm.server.answers import Head, answer_docs, head, json_answer, usage, wants_usage
from nanovllm.server.completion_writer import CompletionWriter
from nanovllm.server.context import ServerContext
from nanovllm.server.disconnect import unless_gone
from nanovllm.server.errors import ApiError
from nanovllm.server.exchange import Exchange, exchange_of
from nanovllm.server.generation import Job, generate
from nanovllm.server.json_route import JsonRoute
from nanovllm.server.prompts import check_count, encode, fitted
from nanovllm.server.protocol.completions import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionChunkWithUsage,
    CompletionRequest,
)
from nanovllm.server.sampling import completion_params
from nanovllm.server.sse import DONE, EventStream, event

__all__ = ["completions_router"]


def completions_router(context: ServerContext) -> APIRouter:
    router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])

    @router.post("/v1/completions", response_model=None, responses=answer_docs(Completion, CompletionChunk))
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        """Continues a text."""
        exchange = exchange_of(request.scope)
        context.check_fields(body)
        first = head("cmpl", body, context)
        jobs, texts = await _read_jobs(body, context)
        writer = CompletionWriter(body, jobs, texts, context)
        if body.stream:
            return EventStream(_events(first, writer, context, exchange), context.settings.keep_alive_s)
        return json_answer(await unless_gone(request.receive, _answer(first, writer, context, exchange)))

    return router


async def _read_jobs(body: CompletionRequest, context: ServerContext) -> tuple[list[Job], list[str]]:
    """A job for each prompt, and what stands before its continuations in the answer: the prompt, with echo."""
    params = completion_params(body, context.llm.get_default_sampling_params(), context.settings)
    tokenizer = context.llm.tokenizer
    prompts = _prompts(body)
    check_count(len(prompts), params.n, context, param="prompt")
    jobs, texts = [], []
    for prompt in prompts:
        given = prompt
        if isinstance(given, str):
            given = await encode(tokenizer, given, add_special_tokens=body.add_special_tokens is not False)
        ids = fitted(given, body, context, asked_tokens=body.max_tokens, param="prompt")
        jobs.append(Job(token_ids=ids, params=params, priority=body.priority or 0, cache_salt=body.cache_salt or ""))
        whole = isinstance(prompt, str) and len(ids) == len(given)
        text = (prompt if whole else tokenizer.decode(ids, skip_special_tokens=False)) if body.echo else ""
        texts.append(str(text))
    return jobs, texts


def _prompts(body: CompletionRequest) -> Sequence[str | list[int]]:
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise ApiError(400, "prompt is empty; give a text, token ids, or a list of them.", param="prompt")
    first = prompt[0]
    return [prompt] if isinstance(first, int) else prompt  # type: ignore[return-value, list-item]


async def _answer(first: Head, writer: CompletionWriter, context: ServerContext, exchange: Exchange) -> Completion:
    choices: dict[int, CompletionChoice] = {}
    async with aclosing(generate(context, exchange, writer.jobs)) as outputs:
        async for number, output in outputs:
            for choice in writer.choices(number, output):
                choices[choice.index] = choice
    return Completion(**first, choices=[choices[index] for index in sorted(choices)], usage=usage(writer.counter))


async def _events(
    first: Head, writer: CompletionWriter, context: ServerContext, exchange: Exchange
) -> AsyncGenerator[bytes, None]:
    with_usage, always = wants_usage(writer.body)

    def chunk(choices: list[CompletionChoice], *, told: bool) -> bytes:
        if not with_usage:
            return event(CompletionChunk(**first, choices=choices))
        return event(CompletionChunkWithUsage(**first, choices=choices, usage=usage(writer.counter) if told else None))

    async with aclosing(generate(context, exchange, writer.jobs)) as outputs:
        async for number, output in outputs:
            choices = writer.choices(number, output)
            if choices:
                yield b"".join(chunk([choice], told=always) for choice in choices)
    yield (chunk([], told=True) if with_usage else b"") + DONE
