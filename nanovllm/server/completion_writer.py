"""CompletionWriter: the engine's outputs as choices of /v1/completions, whole or as what is new in each.

In: outputs, with the number of their prompt. Out: CompletionChoice models. Knows nothing about how they are sent.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from nanovllm.outputs import CompletionOutput, FinishReason, RequestOutput
from nanovllm.server.context import ServerContext
from nanovllm.server.generation import Job, UsageCounter
from nanovllm.server.logprobs import LogprobFormat, TextOffsets, prompt_logprobs
from nanovllm.server.protocol.completions import CompletionChoice, CompletionLogprobs, CompletionRequest

__all__ = ["CompletionWriter"]


class CompletionWriter:
    """texts: what stands before the continuations of each prompt: the prompt itself with echo, else nothing."""

    def __init__(
        self, body: CompletionRequest, jobs: Sequence[Job], texts: Sequence[str], context: ServerContext
    ) -> None:
        self.body = body
        self.jobs = jobs
        self.counter = UsageCounter(jobs)
        self._texts = texts
        self._tokenizer = context.llm.tokenizer
        self._logprobs = LogprobFormat(self._tokenizer, as_token_ids=bool(body.return_tokens_as_token_ids))
        self._begun: set[int] = set()  # choices of which something was written
        self._offsets: dict[int, TextOffsets] = {}  # by choice: where its continuation has got to
        self._held: dict[int, list[CompletionOutput]] = {}  # by job: what waits for its prompt's log-probabilities
        self._is_echo_only = bool(body.echo) and body.max_tokens == 0

    def choices(self, number: int, output: RequestOutput) -> list[CompletionChoice]:
        """What is new of one job, in order."""
        if self._is_echo_only:
            output = replace(output, outputs=[_without_tokens(each) for each in output.outputs])
        self.counter.add(number, output)
        completions = [*self._held.pop(number, ()), *output.outputs]
        if self.jobs[number].params.prompt_logprobs is not None and output.prompt_logprobs is None:
            self._held[number] = completions
            return []
        return [self._choice(number, output, each) for each in completions if self._is_news(each)]

    def _is_news(self, completion: CompletionOutput) -> bool:
        has_tokens = bool(completion.token_ids) and (self.body.logprobs is not None or bool(self.body.return_token_ids))
        return bool(completion.text) or has_tokens or completion.finish_reason is not None

    def _choice(self, number: int, output: RequestOutput, completion: CompletionOutput) -> CompletionChoice:
        body, job = self.body, self.jobs[number]
        index = number * job.params.n + completion.index
        is_first = index not in self._begun
        self._begun.add(index)
        shows_prompt = is_first and output.prompt_logprobs is not None and body.prompt_logprobs is not None
        return CompletionChoice(
            index=index,
            text=(self._texts[number] if is_first else "") + completion.text,
            logprobs=self._choice_logprobs(number, index, output, completion, is_first),
            finish_reason=_finish_reason(completion.finish_reason),
            stop_reason=completion.stop_reason,
            prompt_logprobs=prompt_logprobs(output.prompt_logprobs or ()) if shows_prompt else None,
            prompt_token_ids=job.token_ids if body.return_token_ids and is_first else None,
            token_ids=completion.token_ids if body.return_token_ids else None,
        )

    def _choice_logprobs(
        self, number: int, index: int, output: RequestOutput, completion: CompletionOutput, is_first: bool
    ) -> CompletionLogprobs | None:
        """Those of the new tokens, after those of the prompt where it stands before the first of them."""
        if self.body.logprobs is None:
            return None
        token_ids, text = self.jobs[number].token_ids, self._texts[number]
        if index not in self._offsets:
            hidden = self._tokenizer.special_token_ids if self.body.skip_special_tokens is not False else frozenset()
            self._offsets[index] = TextOffsets(self._tokenizer, hidden, start=len(text))
        new = self._logprobs.completion(completion.token_ids, completion.logprobs or (), self._offsets[index])
        if not (is_first and self.body.echo and output.prompt_logprobs is not None):
            return new
        offsets = TextOffsets(self._tokenizer, self._not_in(text, token_ids))
        old = self._logprobs.completion(token_ids, output.prompt_logprobs, offsets)
        return CompletionLogprobs(
            tokens=old.tokens + new.tokens,
            token_logprobs=old.token_logprobs + new.token_logprobs,
            top_logprobs=old.top_logprobs + new.top_logprobs,
            text_offset=old.text_offset + new.text_offset,
        )

    def _not_in(self, text: str, token_ids: Sequence[int]) -> frozenset[int]:
        """Special tokens that the tokenizer put before the prompt's own text."""
        special = self._tokenizer.special_token_ids.intersection(token_ids)
        return frozenset(i for i in special if self._tokenizer.decode([i], skip_special_tokens=False) not in text)


def _without_tokens(completion: CompletionOutput) -> CompletionOutput:
    """As if it had ended before its first token."""
    return replace(
        completion,
        text="",
        token_ids=[],
        logprobs=None if completion.logprobs is None else [],
        finish_reason=FinishReason.LENGTH,
        stop_reason=None,
    )


def _finish_reason(reason: FinishReason | None) -> Literal["stop", "length"] | None:
    """In OpenAI's words; requests that were aborted or failed do not come here."""
    if reason is None:
        return None
    return "stop" if reason is FinishReason.STOP else "length"
