"""What a chat answer is made of, piece by piece. Plain records; knows nothing about any model's text."""

from dataclasses import dataclass

__all__ = ["ChatEvent", "ContentDelta", "ReasoningDelta", "ToolArgumentsDelta", "ToolCallStart"]


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """More of the text that is meant for the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of what the model thought before it answered."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A call begins. index: 0 for the first of an answer. id: "call_" and 32 hexadecimal digits."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolArgumentsDelta:
    """More of the JSON text of the arguments of the call that began as `index`."""

    index: int
    text: str


ChatEvent = ContentDelta | ReasoningDelta | ToolCallStart | ToolArgumentsDelta
