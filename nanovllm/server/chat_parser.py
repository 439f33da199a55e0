"""ChatParser: a model's text as reasoning, content and tool calls.

In: pieces of one answer's text. Out: events; the same, when joined, wherever the text is cut. This file joins
`reasoning` and `tools`; it knows neither HTTP nor tokens.
"""

from collections.abc import Sequence

from nanovllm.errors import ConfigError
from nanovllm.server.chat_events import ChatEvent, ContentDelta, ReasoningDelta, ToolArgumentsDelta, ToolCallStart
from nanovllm.server.reasoning import REASONING_FORMATS, ReasoningParser
from nanovllm.server.tools.constraint import Tool, ToolChoice, format_for, tool_constraint
from nanovllm.server.tools.tool_call_parser import ToolCallParser

__all__ = [
    "ChatEvent",
    "ChatParser",
    "ContentDelta",
    "ReasoningDelta",
    "ToolArgumentsDelta",
    "ToolCallStart",
    "check_parsers",
    "make_chat_parser",
    "needs_special_tokens",
    "tool_constraint",
]


class ChatParser:
    """Reads one answer. reasoning, calls: None = the answer has none. max_calls: further ones are left out."""

    def __init__(
        self, *, reasoning: ReasoningParser | None, calls: ToolCallParser | None, max_calls: int | None = None
    ) -> None:
        self._reasoning = reasoning
        self._calls = calls
        self._max_calls = max_calls

    def feed(self, delta: str) -> list[ChatEvent]:
        """What the piece of text brings; nothing where more must be seen first."""
        told = self._reasoning.feed(delta) if self._reasoning else [ContentDelta(delta)] if delta else []
        return self._read_content(told)

    def finish(self) -> list[ChatEvent]:
        """The answer is over. To be called once."""
        events = self._read_content(self._reasoning.finish() if self._reasoning else [])
        return events + (self._allowed(self._calls.finish()) if self._calls else [])

    def _read_content(self, told: Sequence[ChatEvent]) -> list[ChatEvent]:
        if self._calls is None:
            return list(told)
        events: list[ChatEvent] = []
        for event in told:
            events += self._allowed(self._calls.feed(event.text)) if isinstance(event, ContentDelta) else [event]
        return events

    def _allowed(self, events: list[ChatEvent]) -> list[ChatEvent]:
        if self._max_calls is None:
            return events
        return [e for e in events if isinstance(e, ContentDelta | ReasoningDelta) or e.index < self._max_calls]


def make_chat_parser(
    *,
    tools: Sequence[Tool] | None,
    tool_choice: ToolChoice,
    tool_parser: str | None,
    reasoning_parser: str | None,
    prompt: str,
    parallel_tool_calls: bool = True,
) -> ChatParser:
    """tools, tool_choice: as in OpenAI's API; without tools, or with "none", no calls are looked for. tool_parser,
    reasoning_parser: names of forms, or None. prompt: what the model answers to; it may end inside of reasoning.
    parallel_tool_calls: False leaves out all calls but the first, as vLLM does.

    A call that is forced stands at the beginning of the answer, so reasoning is not looked for then. Raises
    `ConfigError` for an unknown form.
    """
    check_parsers(tool_parser, reasoning_parser)
    has_calls = bool(tools) and tool_choice != "none"
    form = format_for(tool_choice, tool_parser) if has_calls else None
    is_forced = has_calls and tool_choice not in (None, "auto")
    reasons = None if reasoning_parser is None or is_forced else REASONING_FORMATS[reasoning_parser]
    return ChatParser(
        reasoning=None if reasons is None else ReasoningParser(reasons, prompt),
        calls=None if form is None else ToolCallParser(form),
        max_calls=None if parallel_tool_calls else 1,
    )


def check_parsers(tool_parser: str | None, reasoning_parser: str | None) -> None:
    """Raises `ConfigError` where a name is not in its table."""
    format_for("auto", tool_parser)
    if reasoning_parser is not None and reasoning_parser not in REASONING_FORMATS:
        known = ", ".join(REASONING_FORMATS)
        raise ConfigError(f"reasoning_parser is {reasoning_parser!r}; it must be one of {known}, or None.")


def needs_special_tokens(tools: Sequence[Tool] | None, tool_choice: ToolChoice, tool_parser: str | None) -> bool:
    """Whether calls show only in text that keeps the special tokens (`SamplingParams.skip_special_tokens` False)."""
    form = format_for(tool_choice, tool_parser) if tools and tool_choice != "none" else None
    return form is not None and form.has_special_marker
