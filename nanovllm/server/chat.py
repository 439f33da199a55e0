"""POST /v1/chat/completions: continues a conversation.

In: ChatRequest. Out: a ChatCompletion, or events with a ChatChunk each, the first of which carries the role.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response

from nanovllm.sampling_params import SamplingParams
from nanovllm.server.answers import Head, answer_docs, head, json_answer, usage, wants_usage
from nanovllm.server.chat_parser import ChatParser, make_chat_parser, needs_special_tokens, tool_constraint
from nanovllm.server.chat_writer import ChatWriter
from nanovllm.server.context import ServerContext
from nanovllm.server.conversation import render
from nanovllm.server.disconnect import unless_gone
from nanovllm.server.errors import ApiError
from nanovllm.server.exchange import Exchange, exchange_of
from nanovllm.server.generation import Job, generate
from nanovllm.server.json_route import JsonRoute
from nanovllm.server.logprobs import LogprobFormat, prompt_logprobs
from nanovllm.server.prompts import encode, fitted
from nanovllm.server.protocol.chat import (
    ChatChunk,
    ChatChunkChoice,
    ChatChunkWithUsage,
    ChatCompletion,
    ChatRequest,
    NamedToolChoice,
)
from nanovllm.server.sampling import chat_params
from nanovllm.server.sse import DONE, EventStream, event
from nanovllm.server.tools.constraint import Tool, ToolChoice

__all__ = ["chat_router"]


def chat_router(context: ServerContext) -> APIRouter:
    router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])

    @router.post("/v1/chat/completions", response_model=None, responses=answer_docs(ChatCompletion, ChatChunk))
    async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
        """Continues a conversation."""
        exchange = exchange_of(request.scope)
        context.check_fields(body, is_chat=True)
        first = head("chatcmpl", body, context)
        writer = await _read(body, context)
        if body.stream:
            return EventStream(_events(first, writer, context, exchange), context.settings.keep_alive_s)
        return json_answer(await unless_gone(request.receive, _answer(first, writer, context, exchange)))

    return router


async def _read(body: ChatRequest, context: ServerContext) -> ChatWriter:
    """What the request asks for, with its prompt as token ids."""
    tools, choice = _tools(body)
    params = _params(body, context, tools, choice)
    variables = dict(body.chat_template_kwargs or {})
    for name in ("documents", "reasoning_effort"):
        if getattr(body, name) is not None:
            variables[name] = getattr(body, name)
    prompt = await asyncio.to_thread(
        render,
        context.llm,
        body.messages,
        chat_template=context.settings.chat_template,
        tools=body.tools if tools else None,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        variables=variables,
    )
    tokenizer = context.llm.tokenizer
    given = await encode(tokenizer, prompt, add_special_tokens=bool(body.add_special_tokens))
    asked_tokens = body.max_completion_tokens or body.max_tokens
    ids = fitted(given, body, context, asked_tokens=asked_tokens, param="messages")
    job = Job(token_ids=ids, params=params, priority=body.priority or 0, cache_salt=body.cache_salt or "")

    def make_parser() -> ChatParser:
        return make_chat_parser(
            tools=tools,
            tool_choice=choice,
            tool_parser=context.settings.tool_parser,
            reasoning_parser=None if _is_json(params) else context.settings.reasoning_parser,
            prompt=prompt,
            parallel_tool_calls=body.parallel_tool_calls is not False,
        )

    logprobs = LogprobFormat(tokenizer, as_token_ids=bool(body.return_tokens_as_token_ids))
    return ChatWriter(body, job, logprobs, make_parser)


def _is_json(params: SamplingParams) -> bool:
    """Whether the answer is JSON from its first token on, so that no reasoning can stand before it."""
    form = params.structured_outputs
    return form is not None and (form.json is not None or bool(form.json_object))


def _tools(body: ChatRequest) -> tuple[list[Tool] | None, ToolChoice]:
    """The tools that may be called, and the choice among them. With "none" the model is not told of any."""
    choice = body.tool_choice
    if not body.tools:
        if choice not in (None, "none", "auto"):
            raise ApiError(400, "tool_choice is given without tools; give tools, or leave it out.", param="tool_choice")
        return None, None
    if choice == "none":
        return None, None
    tools: list[Tool] = [tool.model_dump(exclude_none=True) for tool in body.tools]
    return tools, choice.model_dump() if isinstance(choice, NamedToolChoice) else choice or "auto"


def _params(body: ChatRequest, context: ServerContext, tools: list[Tool] | None, choice: ToolChoice) -> SamplingParams:
    tool_parser = context.settings.tool_parser
    forced = tool_constraint(tools, choice, tool_parser, body.parallel_tool_calls is not False)
    defaults = context.llm.get_default_sampling_params()
    models_own = context.llm.model_info.generation_defaults.get("max_new_tokens")
    params = chat_params(
        body,
        defaults,
        context.settings,
        default_max_tokens=models_own if models_own == defaults.max_tokens else None,
        forced_form=forced,
    )
    if body.skip_special_tokens is None and needs_special_tokens(tools, choice, tool_parser):
        return replace(params, skip_special_tokens=False)
    return params


async def _answer(first: Head, writer: ChatWriter, context: ServerContext, exchange: Exchange) -> ChatCompletion:
    body = writer.body
    async with aclosing(generate(context, exchange, [writer.job])) as outputs:
        async for number, output in outputs:  # one, which is complete
            writer.counter.add(number, output)
            final = output
    return ChatCompletion(
        **first,
        choices=[writer.choice(completion) for completion in final.outputs],
        usage=usage(writer.counter),
        prompt_logprobs=None if body.prompt_logprobs is None else prompt_logprobs(final.prompt_logprobs or ()),
        prompt_token_ids=writer.job.token_ids if body.return_token_ids else None,
    )


async def _events(
    first: Head, writer: ChatWriter, context: ServerContext, exchange: Exchange
) -> AsyncGenerator[bytes, None]:
    with_usage, always = wants_usage(writer.body)

    def chunk(choices: list[ChatChunkChoice], *, told: bool, **more: Any) -> bytes:
        if not with_usage:
            return event(ChatChunk(**first, choices=choices, **more))
        now = usage(writer.counter) if told else None
        return event(ChatChunkWithUsage(**first, choices=choices, usage=now, **more))

    begun = False
    async with aclosing(generate(context, exchange, [writer.job])) as outputs:
        async for number, output in outputs:
            events = []
            if not begun:
                ids = writer.job.token_ids if writer.body.return_token_ids else None
                events = [chunk([each], told=always, prompt_token_ids=ids) for each in writer.first_choices()]
                begun = True
            writer.counter.add(number, output)
            events += [chunk([each], told=always) for each in writer.chunk_choices(output)]
            if events:
                yield b"".join(events)
    yield (chunk([], told=True) if with_usage else b"") + DONE
