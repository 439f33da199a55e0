"""/tokenize, /detokenize and /tokenizer_info in vLLM's form; /v1/tokenize and /v1/detokenize beside /v1/inference."""

from pydantic import BaseModel, Field

from nanovllm.server.protocol.base import RequestModel, TokenIds
from nanovllm.server.protocol.chat import Message, Tool

__all__ = [
    "DetokenizeRequest",
    "Detokenized",
    "StepText",
    "StepTokens",
    "TextOfTokens",
    "TokenizeRequest",
    "TokenizedText",
    "TokenizerInfo",
    "TokensOfText",
]


class TokenizeRequest(RequestModel):
    """A prompt, or the messages of a conversation; the other fields are for messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(default=None, min_length=1)
    add_special_tokens: bool | None = Field(default=None, description="True for a prompt, false for messages.")
    return_token_strs: bool | None = None
    tools: list[Tool] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, object] | None = None


class TokenizedText(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(RequestModel):
    model: str | None = None
    tokens: TokenIds


class Detokenized(BaseModel):
    prompt: str


class TokenizerInfo(BaseModel):
    tokenizer_class: str
    vocab_size: int
    model_max_length: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    chat_template: str | None


class TokensOfText(RequestModel):
    text: str
    add_special_tokens: bool | None = None


class StepTokens(BaseModel):
    token_ids: list[int]


class TextOfTokens(RequestModel):
    token_ids: TokenIds
    skip_special_tokens: bool | None = None


class StepText(BaseModel):
    text: str
