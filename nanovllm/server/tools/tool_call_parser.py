"""ToolCallParser: finds the tool calls in a text that comes in pieces.

In: pieces of text. Out: events; the same, when joined, wherever the text is cut. Text is held back only while it may be
the beginning of a call: what turns out to be none comes out as content. Of a call whose arguments go wrong after they
have begun, the client keeps the beginning, and the rest is content. White space around calls belongs to their frame.
"""

from nanovllm.server.chat_events import ChatEvent, ContentDelta
from nanovllm.server.tools.call_sink import CallSink
from nanovllm.server.tools.formats import ToolFormat
from nanovllm.server.tools.reading import NotACallError, Reading

__all__ = ["ToolCallParser", "held_length"]


def held_length(text: str, marker: str) -> int:
    """How many characters at the end of `text`, which does not hold `marker`, may be the beginning of it."""
    return next((n for n in range(min(len(text), len(marker) - 1), 0, -1) if marker.startswith(text[-n:])), 0)


class ToolCallParser:
    """Reads one answer."""

    def __init__(self, form: ToolFormat) -> None:
        self._form = form
        self._sink = CallSink()
        self._reading: Reading | None = None  # of the call that is being read
        self._held = ""  # text that may begin a call; or, while one is read, its text as far as it says nothing yet
        self._held_chars: list[str] = []
        self._is_blank = True  # nothing but white space since the beginning, or since the last call
        self._events: list[ChatEvent] = []

    def feed(self, delta: str) -> list[ChatEvent]:
        text = delta
        while text:
            text = self._read_text(text) if self._reading is None else self._read_calls(text)
        return self._take_events()

    def finish(self) -> list[ChatEvent]:
        """The text is over; what was held back comes out."""
        if self._reading is not None:
            self._leave_calls()
        if self._held and not (self._held.isspace() and self._sink.num_calls):
            self._events.append(ContentDelta(self._held))
        self._held = ""
        return self._take_events()

    def _take_events(self) -> list[ChatEvent]:
        self._events += self._sink.take_events()
        events, self._events = self._events, []
        return events

    def _read_text(self, delta: str) -> str:
        """Takes text up to the beginning of a call; returns what follows it."""
        text = self._held + delta
        self._held = ""
        marker = self._form.marker
        first = len(text) - len(text.lstrip()) if self._is_blank else len(text)
        if self._form.bare and text[first : first + 1] == self._form.bare:
            self._enter_calls(text[:first])
            return text[first:]
        at = -1 if marker is None else text.find(marker)
        if marker is not None and at >= 0:
            self._add_content(text[:at])
            self._enter_calls(self._held + marker)
            return text[at + len(marker) :]
        end = len(text) - (0 if marker is None else held_length(text, marker))
        self._add_content(text[:end])
        self._held += text[end:]
        return ""

    def _add_content(self, text: str) -> None:
        """White space with nothing before it is held: a call may follow."""
        if self._is_blank and (not text or text.isspace()):
            self._held = text
            return
        self._is_blank = False
        if text:
            self._events.append(ContentDelta(text))

    def _enter_calls(self, opening: str) -> None:
        self._held = ""
        self._held_chars = [opening]
        self._reading = self._form.read(self._sink)
        next(self._reading)

    def _read_calls(self, text: str) -> str:
        """Takes the text of calls; returns what follows them."""
        assert self._reading is not None, "a call is being read"
        for position, char in enumerate(text):
            num_calls, was_begun = self._sink.num_calls, self._sink.is_begun
            try:
                self._reading.send(char)
            except StopIteration as end:
                self._held_chars = []
                self._leave_calls()
                return text[position if end.value else position + 1 :]
            except NotACallError:
                self._leave_calls()
                return text[position:]
            if self._sink.is_begun or was_begun or self._sink.num_calls > num_calls:
                self._held_chars = []  # it is in the events now
            else:
                self._held_chars.append(char)
        return ""

    def _leave_calls(self) -> None:
        """Back to text, where what was held of a call is content, unless it is white space between calls."""
        is_broken = self._sink.is_begun
        self._sink.end_call()
        self._events += self._sink.take_events()
        self._reading = None
        held, self._held_chars = "".join(self._held_chars), []
        self._is_blank = not is_broken and (not held or held.isspace())
        if self._is_blank:
            self._held = held
        elif held:
            self._events.append(ContentDelta(held))
