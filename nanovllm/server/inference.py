"""POST /v1/inference: one next token for each sequence, for an engine that keeps its sequences elsewhere.

The sequences are computed together, and what an earlier step has computed is found in the prefix cache.
"""

from contextlib import aclosing

from fastapi import APIRouter, Request, Response

from nanovllm.server.answers import answer_docs, json_answer
from nanovllm.server.context import ServerContext
from nanovllm.server.disconnect import unless_gone
from nanovllm.server.errors import ApiError
from nanovllm.server.exchange import Exchange, exchange_of
from nanovllm.server.generation import Job, generate
from nanovllm.server.json_route import JsonRoute
from nanovllm.server.prompts import check_count
from nanovllm.server.protocol.inference import InferenceRequest, InferenceResponse
from nanovllm.server.sampling import step_params

__all__ = ["inference_router"]


def inference_router(context: ServerContext) -> APIRouter:
    router = APIRouter(route_class=JsonRoute, tags=["Step protocol"])

    @router.post("/v1/inference", response_model=None, responses=answer_docs(InferenceResponse))
    async def infer(body: InferenceRequest, request: Request) -> Response:
        """The next token of each sequence."""
        exchange = exchange_of(request.scope)
        context.check_fields(body)
        return json_answer(await unless_gone(request.receive, _step(body, context, exchange)))

    return router


async def _step(body: InferenceRequest, context: ServerContext, exchange: Exchange) -> InferenceResponse:
    check_count(len(body.sequences), 1, context, param="sequences")
    longest = min(context.settings.max_prompt_tokens or context.llm.max_model_len, context.llm.max_model_len - 1)
    for sequence in body.sequences:
        if len(sequence.token_ids) > longest:
            message = f"a sequence has {len(sequence.token_ids)} tokens; this server allows at most {longest}."
            raise ApiError(400, message, param="sequences", code="context_length_exceeded")
    jobs = [Job(token_ids=each.token_ids, params=step_params(each)) for each in body.sequences]
    token_ids = [0] * len(jobs)
    async with aclosing(generate(context, exchange, jobs)) as outputs:
        async for number, output in outputs:
            token_ids[number] = output.outputs[0].token_ids[0]
    return InferenceResponse(token_ids=token_ids)
