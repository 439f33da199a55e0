"""The parts of which the forms of tool calls are put together, as generators that are sent one character at a time.

    char = yield                  the next character
    return char                   the first character that is not one's own, or "" where nothing more was read
    raise NotACallError           this text is no call

In: characters, and a CallSink that is told what they mean. Out: nothing else. Knows no markers of any model.
"""

import json
from collections.abc import Generator

from nanovllm.server.tools.call_sink import CallSink
from nanovllm.server.tools.json_scanner import JsonScanner

__all__ = ["NotACallError", "Reading", "blanks", "literal", "read_arguments", "read_call", "read_list", "require"]

Reading = Generator[None, str, str]

_ARGUMENTS = ("arguments", "parameters")
_LABELS = ("id", "type")
"""Keys that some models write into a call and that say nothing more."""


class NotACallError(Exception):
    """The character just sent cannot stand there; what came before it was no call, or only the beginning of one."""


def require(char: str, allowed: str) -> None:
    """Raises `NotACallError`."""
    if char not in allowed:
        raise NotACallError


def blanks(char: str) -> Reading:
    """Skips white space from `char` on."""
    while char.isspace():
        char = yield
    return char


def literal(char: str, text: str) -> Reading:
    """`text`, of which `char` is the first character."""
    require(char, text[0])
    for wanted in text[1:]:
        require((yield), wanted)
    return ""


def read_arguments(char: str, sink: CallSink) -> Reading:
    """A JSON object, handed on as it comes."""
    require(char, "{")
    scanner = JsonScanner()
    while scanner.step(char):
        sink.add_arguments(char)
        char = yield
    if not scanner.is_complete:
        raise NotACallError
    return char


def read_call(char: str, sink: CallSink) -> Reading:
    """{"name": ..., "arguments": {...}}, the keys in any order, "parameters" for "arguments"."""
    require(char, "{")
    seen: set[str] = set()
    while char != "}":
        key = yield from _string((yield from blanks((yield))))
        if key not in ("name", *_ARGUMENTS, *_LABELS) or key in seen:
            raise NotACallError
        seen.update(_ARGUMENTS if key in _ARGUMENTS else (key,))
        require((yield from blanks((yield))), ":")
        char = yield from blanks((yield))
        if key in _ARGUMENTS:
            char = yield from read_arguments(char, sink)
        else:
            value = yield from _string(char)
            if key == "name":
                _require_name(value)
                sink.name_call(value)
            char = yield
        char = yield from blanks(char)
        require(char, ",}")
    if not {"name", "arguments"} <= seen:
        raise NotACallError
    sink.end_call()
    return ""


def read_list(char: str, sink: CallSink) -> Reading:
    """[call, ...], at least one."""
    require(char, "[")
    while char != "]":
        char = yield from blanks((yield))
        yield from read_call(char, sink)
        char = yield from blanks((yield))
        require(char, ",]")
    return ""


def _require_name(name: str) -> None:
    if not name or not name.isprintable():  # such as half a surrogate pair, which no answer could carry
        raise NotACallError


def _string(char: str) -> Generator[None, str, str]:
    """A JSON string; returns what it says."""
    require(char, '"')
    scanner, text = JsonScanner(), [char]
    scanner.step(char)
    while not scanner.is_complete:
        char = yield
        if not scanner.step(char):
            raise NotACallError
        text.append(char)
    value: str = json.loads("".join(text))
    return value
