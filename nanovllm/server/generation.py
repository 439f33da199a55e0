"""Generation: the prompts of one HTTP request through the engine, admitted together, observed and ended together.

In: jobs, one for each prompt. Out: the engine's outputs as they come, with the number of their job. Knows nothing about
HTTP and the form of answers.
"""

import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from nanovllm.outputs import FinishReason, RequestOutput
from nanovllm.sampling_params import SamplingParams
from nanovllm.server.admission import Ticket
from nanovllm.server.context import ServerContext
from nanovllm.server.errors import ApiError
from nanovllm.server.exchange import Exchange
from nanovllm.server.merge import merge

__all__ = ["Job", "UsageCounter", "generate"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One prompt and what is asked of it."""

    token_ids: list[int]
    params: SamplingParams
    priority: int = 0
    cache_salt: str = ""


async def generate(
    context: ServerContext, exchange: Exchange, jobs: Sequence[Job]
) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    """exchange: whose prompts these are. Closing it aborts what runs. Raises `ApiError` where there is no room or the
    server ended a request, and what `AsyncLLM.generate` raises."""
    with contextlib.ExitStack() as stack:
        tickets = [
            stack.enter_context(context.admission.admit(exchange, len(job.token_ids), job.params)) for job in jobs
        ]
        streams = [_outputs(context, job, ticket) for job, ticket in zip(jobs, tickets, strict=True)]
        async with contextlib.aclosing(merge(streams)) as outputs:
            async for number, output in outputs:
                yield number, output


async def _outputs(context: ServerContext, job: Job, ticket: Ticket) -> AsyncGenerator[RequestOutput, None]:
    prompt = {"prompt_token_ids": job.token_ids, "cache_salt": job.cache_salt} if job.cache_salt else job.token_ids
    stream = context.llm.generate(prompt, job.params, priority=job.priority)
    with ticket:
        async with contextlib.aclosing(stream):
            async for output in stream:
                ticket.observe(output)
                if any(completion.finish_reason is FinishReason.ABORT for completion in output.outputs):
                    raise ApiError(503, "the server ended this request before its end; send it again later.")
                yield output


class UsageCounter:
    """Counts the tokens of one HTTP request from deltas, or from final outputs."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.num_prompt_tokens = sum(len(job.token_ids) for job in jobs)
        self.num_new_tokens = 0
        self._num_cached_tokens = [0] * len(jobs)

    @property
    def num_cached_tokens(self) -> int:
        return sum(self._num_cached_tokens)

    def add(self, number: int, output: RequestOutput) -> None:
        self._num_cached_tokens[number] = output.num_cached_tokens
        self.num_new_tokens += sum(len(completion.token_ids) for completion in output.outputs)
