"""The forms in which models write tool calls, as a table.

A new form is one entry of `TOOL_FORMATS`: the marker that begins it, a reader of what follows, and how a forced call is
spelled. Knows nothing about streams (`tool_call_parser`) and about grammars (`constraint`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from nanovllm.server.tools.call_sink import CallSink
from nanovllm.server.tools.reading import (
    NotACallError,
    Reading,
    blanks,
    literal,
    read_arguments,
    read_call,
    read_list,
    require,
)

__all__ = ["JSON_LIST", "TOOL_FORMATS", "CallFrame", "ToolFormat", "arguments_of"]


@dataclass(frozen=True, kw_only=True)
class CallFrame:
    """A forced call: `before_name`, the name as JSON, `before_arguments`, the arguments as JSON, `after_arguments`.
    Several stand between `open` and `close` with `separator` between them."""

    before_name: str
    before_arguments: str
    after_arguments: str
    separator: str
    open: str = ""
    close: str = ""


@dataclass(frozen=True, kw_only=True)
class ToolFormat:
    """One form.

    marker: text that begins calls wherever it stands; None = there is none. bare: a character that begins calls where
    nothing but white space or calls stand before it, and is the reader's first; "" = there is none. read: reads what
    follows the marker, one call or more. frame: how forced calls are spelled; None = as `JSON_LIST`, for a marker that
    is a special token, which no grammar over text can ask for. has_special_marker: the marker is a special token
    of the models that write it, so that it shows only in text that keeps them.
    """

    read: Callable[[CallSink], Reading]
    marker: str | None = None
    bare: str = ""
    frame: CallFrame | None = None
    has_special_marker: bool = False


def _hermes(sink: CallSink) -> Reading:
    """<tool_call>{"name": ..., "arguments": ...}</tool_call>"""
    yield from read_call((yield from blanks((yield))), sink)
    return (yield from literal((yield from blanks((yield))), "</tool_call>"))


def _llama3_json(sink: CallSink) -> Reading:
    """{"name": ..., "parameters": ...}; {"name": ..., "parameters": ...}"""
    char = yield from blanks((yield))
    while True:
        yield from read_call(char, sink)
        char = yield from blanks((yield))
        if char in (";", ","):
            char = yield from blanks((yield))


def _mistral(sink: CallSink) -> Reading:
    """[{"name": ..., "arguments": ...}, ...], or NAME{...}, or NAME[CALL_ID]ID[ARGS]{...}, after [TOOL_CALLS]."""
    char = yield from blanks((yield))
    if char == "[":
        return (yield from read_list(char, sink))
    name = []
    while char not in "[{" and not char.isspace():
        name.append(char)
        char = yield
    char = yield from blanks(char)
    while char == "[":
        char = yield from _mistral_label()
    if not name:
        raise NotACallError
    sink.name_call("".join(name))
    char = yield from read_arguments(char, sink)
    sink.end_call()
    return char


def _mistral_label() -> Reading:
    """[CALL_ID]ID or [ARGS], after the bracket."""
    char = yield
    require(char, "CA")
    if char == "A":
        yield from literal(char, "ARGS]")
        return (yield from blanks((yield)))
    yield from literal(char, "CALL_ID]")
    char = yield
    while char.isalnum() or char in "-_":
        char = yield
    return (yield from blanks(char))


def _json_list(sink: CallSink) -> Reading:
    return (yield from read_list((yield), sink))


def arguments_of(name: str) -> ToolFormat:
    """The whole text is the arguments of one call of `name`."""

    def read(sink: CallSink) -> Reading:
        sink.name_call(name)
        char = yield from read_arguments((yield), sink)
        sink.end_call()
        return char

    return ToolFormat(read=read, bare="{")


_PLAIN = CallFrame(
    open="[",
    before_name='{"name": ',
    before_arguments=', "arguments": ',
    after_arguments="}",
    separator=", ",
    close="]",
)

JSON_LIST = ToolFormat(read=_json_list, bare="[", frame=_PLAIN)
"""What is forced on a model whose own form is not known."""

TOOL_FORMATS: Mapping[str, ToolFormat] = MappingProxyType(
    {
        "hermes": ToolFormat(
            read=_hermes,
            marker="<tool_call>",
            frame=CallFrame(
                before_name='<tool_call>\n{"name": ',
                before_arguments=', "arguments": ',
                after_arguments="}\n</tool_call>",
                separator="\n",
            ),
        ),
        "llama3_json": ToolFormat(
            read=_llama3_json,
            marker="<|python_tag|>",
            bare="{",
            frame=CallFrame(
                before_name='{"name": ', before_arguments=', "parameters": ', after_arguments="}", separator="; "
            ),
        ),
        "mistral": ToolFormat(read=_mistral, marker="[TOOL_CALLS]", has_special_marker=True),
    }
)
"""By the names that vLLM gives them."""
