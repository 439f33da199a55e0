"""What all APIs share: the strictness of requests, and fields that are left out where there is nothing to tell."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "Absent",
    "ErrorDetail",
    "ErrorResponse",
    "PromptTokensDetails",
    "RequestModel",
    "StreamOptions",
    "TokenId",
    "TokenIds",
    "Usage",
]


def _is_none(value: object) -> bool:
    return value is None


Absent = Field(default=None, exclude_if=_is_none)
"""Default of a response's field that is not there, rather than null, where there is nothing to tell."""

TokenId = Annotated[int, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
"""Of what may be a million wrong items, one is told."""


class RequestModel(BaseModel):
    """A request: types are taken as they are ("1" is no number), and unknown fields are kept to be warned about."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    def unknown_fields(self) -> dict[str, Any]:
        """Fields that were sent and that no field of the model stands for."""
        return dict(self.__pydantic_extra__ or {})


class StreamOptions(RequestModel):
    """include_usage: a last chunk without choices tells the usage. continuous_usage_stats: so does every chunk."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class PromptTokensDetails(BaseModel):
    cached_tokens: int = Field(default=0, description="Prompt tokens that the prefix cache saved computing.")


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """All four keys are always there."""

    error: ErrorDetail
