"""/v1/inference: one step of an engine that runs elsewhere. Nothing is kept between two requests."""

from pydantic import BaseModel, ConfigDict, Field

from nanovllm.server.protocol.base import RequestModel, TokenIds

__all__ = ["InferenceRequest", "InferenceResponse", "StepSequence"]


class StepSequence(RequestModel):
    """token_ids: all of the sequence, prompt and output. The rest says how the next token is sampled; its defaults are
    those of SamplingParams. With a seed, the token is a function of it, of the position and of the model."""

    model_config = ConfigDict(extra="forbid")

    token_ids: TokenIds = Field(min_length=1)
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, lt=2**31)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0)
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: TokenIds | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)


class InferenceRequest(RequestModel):
    """is_prefill: what the caller's engine calls this step; it makes no difference to the answer."""

    sequences: list[StepSequence] = Field(min_length=1)
    is_prefill: bool | None = None


class InferenceResponse(BaseModel):
    """token_ids: the next token of each sequence, in the order of the request."""

    token_ids: list[int]
