"""What a model thinks before it answers, told apart from the answer. The forms are a table.

In: pieces of text. Out: reasoning and content; the same, when joined, wherever the text is cut. Only what stands at the
beginning is reasoning. White space beside the markers belongs to them. Knows nothing about tool calls.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from nanovllm.server.chat_events import ChatEvent, ContentDelta, ReasoningDelta
from nanovllm.server.tools.tool_call_parser import held_length

__all__ = ["REASONING_FORMATS", "ReasoningFormat", "ReasoningParser"]


@dataclass(frozen=True, kw_only=True)
class ReasoningFormat:
    """begin, end: the markers. is_implied: an answer begins with reasoning even where nothing says so, unless the
    prompt ends with `end`."""

    begin: str = "<think>"
    end: str = "</think>"
    is_implied: bool = False

    def is_begun_by(self, prompt: str) -> bool:
        """Whether an answer to `prompt` begins inside of reasoning: a chat template may have written the marker."""
        told = prompt.rstrip()
        return told.endswith(self.begin) or (self.is_implied and not told.endswith(self.end))


REASONING_FORMATS: Mapping[str, ReasoningFormat] = MappingProxyType(
    {
        "think": ReasoningFormat(),
        "qwen3": ReasoningFormat(),
        "deepseek_r1": ReasoningFormat(is_implied=True),
    }
)
"""By the names that vLLM gives them; "think" is our own word for the usual one."""


class ReasoningParser:
    """Reads one answer to `prompt`."""

    def __init__(self, form: ReasoningFormat, prompt: str) -> None:
        self._form = form
        self._held = ""
        self._read = self._read_reasoning if form.is_begun_by(prompt) else self._read_beginning
        self._may_begin = True  # a marker may stand here although reasoning has begun
        self._is_after_marker = True  # white space here belongs to the marker

    def feed(self, delta: str) -> list[ChatEvent]:
        text, self._held = self._held + delta, ""
        return [event for event in self._read(text) if event.text]

    def finish(self) -> list[ChatEvent]:
        """The text is over; what was held back comes out."""
        held, self._held = self._held, ""
        if not held:
            return []
        return [ReasoningDelta(held) if self._read == self._read_reasoning else ContentDelta(held)]

    def _read_beginning(self, text: str) -> list[ContentDelta | ReasoningDelta]:
        told = text.lstrip()
        if told.startswith(self._form.begin):
            self._read = self._read_reasoning
            return self._read_reasoning(text)
        if self._form.begin.startswith(told):
            self._held = text
            return []
        self._read, self._is_after_marker = self._read_content, False
        return [ContentDelta(text)]

    def _read_reasoning(self, text: str) -> list[ContentDelta | ReasoningDelta]:
        if self._may_begin:
            told = text.lstrip()
            if self._form.begin.startswith(told) and told != self._form.begin:
                self._held = text
                return []
            self._may_begin = False
            text = told.removeprefix(self._form.begin)
        if self._is_after_marker:
            text = text.lstrip()
            self._is_after_marker = not text
        at = text.find(self._form.end)
        if at < 0:
            end = len(text) - held_length(text, self._form.end)
            self._held = text[end:]
            return [ReasoningDelta(text[:end])]
        self._read, self._is_after_marker = self._read_content, True
        return [ReasoningDelta(text[:at]), *self._read_content(text[at + len(self._form.end) :])]

    def _read_content(self, text: str) -> list[ContentDelta | ReasoningDelta]:
        if self._is_after_marker:
            text = text.lstrip()
            self._is_after_marker = not text
        return [ContentDelta(text)]
