"""/v1/chat/completions: OpenAI's API for conversations."""

from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator

from nanovllm.server.protocol.base import Absent, RequestModel, Usage
from nanovllm.server.protocol.completions import PromptLogprobs
from nanovllm.server.protocol.generation import GenerationRequest

__all__ = [
    "ChatChoice",
    "ChatChunk",
    "ChatChunkChoice",
    "ChatChunkWithUsage",
    "ChatCompletion",
    "ChatDelta",
    "ChatFinishReason",
    "ChatLogprob",
    "ChatLogprobs",
    "ChatMessage",
    "ChatRequest",
    "ConversationFields",
    "Function",
    "FunctionCall",
    "FunctionCallDelta",
    "FunctionMade",
    "Message",
    "NamedToolChoice",
    "TextPart",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolCallMade",
]

ChatFinishReason = Literal["stop", "length", "tool_calls"]


class TextPart(RequestModel):
    """type: only "text" is honoured; "refusal" is what an earlier answer of OpenAI's may hold."""

    type: Literal["text", "input_text", "refusal"]
    text: str | None = None
    refusal: str | None = None


class FunctionCall(RequestModel):
    name: str
    arguments: str = Field(description="JSON.")


class ToolCall(RequestModel):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(RequestModel):
    """Of a conversation. content: a text, or parts of it; null where an assistant only called tools."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class Function(RequestModel):
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="A JSON schema.")
    strict: bool | None = None


class Tool(RequestModel):
    type: Literal["function"]
    function: Function


class NamedFunction(RequestModel):
    name: str


class NamedToolChoice(RequestModel):
    type: Literal["function"] = "function"
    function: NamedFunction


class ConversationFields(RequestModel):
    """What makes a prompt of a conversation."""

    messages: list[Message] = Field(min_length=1)
    tools: list[Tool] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = Field(default=None, description="Continue the last message itself.")
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = Field(default=None, description="For templates that take them.")


class ChatRequest(ConversationFields, GenerationRequest):
    """Continues a conversation."""

    max_completion_tokens: int | None = Field(default=None, ge=1, description="By default what the context leaves.")
    max_tokens: int | None = Field(default=None, ge=1, description="The older name of max_completion_tokens.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=-1, description="Only with logprobs.")
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None
    reasoning_effort: str | None = Field(default=None, description="Given to the model's chat template.")
    include_reasoning: bool | None = None
    metadata: dict[str, Any] | None = Field(default=None, description="A label of the client's; no difference.")
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = Field(default=None, description="A label of the client's; no difference.")
    prompt_cache_key: str | None = Field(default=None, description="A hint; every prompt is looked up in the cache.")

    @field_validator("messages", mode="before")
    @classmethod
    def _only_text(cls, messages: Any) -> Any:
        """A message about parts that are no text, in place of one about unions."""
        for message in messages if isinstance(messages, list) else ():
            content = message.get("content") if isinstance(message, dict) else None
            for part in content if isinstance(content, list) else ():
                kind = part.get("type") if isinstance(part, dict) else None
                if kind in _MEDIA:
                    raise ValueError(f"a content part is of type {kind!r}; this server takes 'text' only")
        return messages


_MEDIA = ("image_url", "input_image", "input_audio", "audio_url", "video_url", "file", "input_file")


class ChatLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(ChatLogprob):
    top_logprobs: list[ChatLogprob]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None = None


class FunctionMade(BaseModel):
    name: str
    arguments: str


class ToolCallMade(BaseModel):
    """A call in an answer; its id names it in the conversation that follows."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionMade


class ChatMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | None = Absent
    tool_calls: list[ToolCallMade] | None = Absent


class ChatChoice(BaseModel):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason
    stop_reason: int | str | None
    token_ids: list[int] | None = Absent


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | None = Absent
    prompt_token_ids: list[int] | None = Absent


class FunctionCallDelta(BaseModel):
    name: str | None = Absent
    arguments: str


class ToolCallDelta(BaseModel):
    index: int
    id: str | None = Absent
    type: Literal["function"] | None = Absent
    function: FunctionCallDelta


class ChatDelta(BaseModel):
    role: Literal["assistant"] | None = Absent
    content: str | None = Absent
    refusal: None = Absent
    reasoning_content: str | None = Absent
    tool_calls: list[ToolCallDelta] | None = Absent


class ChatChunkChoice(BaseModel):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None
    stop_reason: int | str | None = Absent
    token_ids: list[int] | None = Absent


class ChatChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    prompt_token_ids: list[int] | None = Absent


class ChatChunkWithUsage(ChatChunk):
    usage: Usage | None
