"""What requests for text have in common, whether a prompt or a conversation is continued."""

from typing import Annotated, Any, Literal

from pydantic import Field

from nanovllm.server.protocol.base import RequestModel, StreamOptions, TokenIds

__all__ = ["GenerationRequest", "JsonSchema", "ResponseFormat"]

_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


class JsonSchema(RequestModel):
    """strict makes no difference: a schema is always enforced exactly, or refused."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(RequestModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class GenerationRequest(RequestModel):
    """Fields of OpenAI's that both APIs have, and vLLM's. null is the same as leaving a field out, everywhere."""

    model: str | None = Field(default=None, description="One of /v1/models; may be left out.")
    n: int | None = Field(default=None, ge=1, description="Continuations; the i-th has the seed seed + i.")
    temperature: float | None = Field(default=None, ge=0, description="0 is greedy.")
    top_p: float | None = Field(default=None, gt=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    seed: int | None = Field(default=None, ge=_INT64_MIN, le=_INT64_MAX)
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = Field(default=None, description="By token id, -100 to 100.")
    stream: bool | None = None
    stream_options: StreamOptions | None = Field(default=None, description="Only with stream.")
    response_format: ResponseFormat | None = None
    user: str | None = Field(default=None, description="A label of the client's; makes no difference.")

    top_k: int | None = Field(default=None, ge=-1, lt=2**31)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0)
    min_tokens: int | None = Field(default=None, ge=0)
    ignore_eos: bool | None = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: TokenIds | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    structured_outputs: dict[str, Any] | None = Field(
        default=None, description="One of json, regex, choice, grammar and json_object, and options for JSON."
    )
    prompt_logprobs: int | None = Field(default=None, ge=-1, description="Not with stream.")
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=_INT64_MAX)] | None = Field(
        default=None, description="Keep so many tokens of the prompt; -1: as many as the model takes."
    )
    truncation_side: Literal["left", "right"] | None = Field(default=None, description="Where tokens are dropped.")
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = Field(
        default=None, description='Tokens of log-probabilities are written as "token_id:7".'
    )
    priority: int | None = Field(default=None, ge=_INT64_MIN, le=_INT64_MAX, description="Lower goes first.")
    cache_salt: str | None = Field(
        default=None, min_length=1, max_length=1024, description="Requests of one salt share the prefix cache."
    )
    request_id: str | None = Field(default=None, min_length=1, max_length=256, description="Part of the answer's id.")
