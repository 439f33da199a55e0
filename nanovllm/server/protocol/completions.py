"""/v1/completions: OpenAI's older API, which continues a text."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from nanovllm.server.protocol.base import Absent, TokenIds, Usage
from nanovllm.server.protocol.generation import GenerationRequest

__all__ = [
    "Completion",
    "CompletionChoice",
    "CompletionChunk",
    "CompletionChunkWithUsage",
    "CompletionLogprobs",
    "CompletionRequest",
    "PromptLogprobs",
]

PromptLogprobs = list[dict[int, dict[str, Any]] | None]
"""vLLM's form: for each token of the prompt {token id: {"logprob", "rank", "decoded_token"}}; null for the first."""


class CompletionRequest(GenerationRequest):
    """Continues one prompt or several, given as texts or as token ids."""

    prompt: (
        str | Annotated[list[str], Field(fail_fast=True)] | TokenIds | Annotated[list[TokenIds], Field(fail_fast=True)]
    )
    max_tokens: int | None = Field(default=None, ge=0, description="16 by default; 0 only with echo.")
    logprobs: int | None = Field(default=None, ge=-1, description="Likeliest tokens to tell at each position.")
    echo: bool | None = Field(default=None, description="The prompt stands before the continuation.")


class CompletionLogprobs(BaseModel):
    """text_offset: where each token begins in the choice's text, in characters."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    stop_reason: int | str | None
    prompt_logprobs: PromptLogprobs | None = Absent
    prompt_token_ids: list[int] | None = Absent
    token_ids: list[int] | None = Absent


class CompletionChunk(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]


class CompletionChunkWithUsage(CompletionChunk):
    usage: Usage | None


class Completion(CompletionChunk):
    usage: Usage
