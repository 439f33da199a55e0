"""CallSink: what a form's reader learns of calls, as events.

A call begins to exist for the client when its name is known and its arguments have begun, in whichever order.
"""

import uuid

from nanovllm.server.chat_events import ChatEvent, ToolArgumentsDelta, ToolCallStart

__all__ = ["CallSink"]


class CallSink:
    """num_calls: how many have begun. is_begun: the call that is being read has."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.is_begun = False
        self._name: str | None = None
        self._arguments: list[str] = []
        self._events: list[ChatEvent] = []

    def name_call(self, name: str) -> None:
        self._name = name
        self._begin()

    def add_arguments(self, text: str) -> None:
        self._arguments.append(text)
        self._begin()

    def end_call(self) -> None:
        """The call that is being read goes no further; one that has not begun is forgotten."""
        self._flush()
        self.is_begun, self._name, self._arguments = False, None, []

    def take_events(self) -> list[ChatEvent]:
        """What is new."""
        self._flush()
        events, self._events = self._events, []
        return events

    def _begin(self) -> None:
        if self.is_begun or not self._name or not self._arguments:
            return
        self.is_begun = True
        self._events.append(ToolCallStart(self.num_calls, f"call_{uuid.uuid4().hex}", self._name))
        self.num_calls += 1

    def _flush(self) -> None:
        if self.is_begun and self._arguments:
            self._events.append(ToolArgumentsDelta(self.num_calls - 1, "".join(self._arguments)))
            self._arguments = []
