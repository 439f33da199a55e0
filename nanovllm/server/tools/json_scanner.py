"""JsonScanner: follows one JSON value (RFC 8259) character by character.

In: characters. Out: whether each can stand where it comes, and whether the value may end. Makes no value of them.
"""

__all__ = ["JsonScanner"]

_BLANKS = " \t\n\r"
_NUMBER_ENDS = ("zero", "integer", "fraction", "exponent")


def _rows(*cells: tuple[str, str, str]) -> dict[tuple[str, str], str]:
    """(state, characters, next state) as a table by state and character."""
    return {(state, char): following for state, chars, following in cells for char in chars}


_VALUE = (('"', "string"), ("-", "minus"), ("0", "zero"), ("123456789", "integer"))
_WORDS = ("true", "false", "null")
_NEXT = _rows(
    *((state, chars, following) for state in ("value", "value or ]") for chars, following in _VALUE),
    *((state, word[0], word[1:]) for state in ("value", "value or ]") for word in _WORDS),
    *((word[i:], word[i], word[i + 1 :] or "end") for word in _WORDS for i in range(1, len(word))),
    *((state, _BLANKS, state) for state in ("value", "value or ]", "key", "key or }", "colon", "end")),
    *((state, '"', "key string") for state in ("key", "key or }")),
    ("colon", ":", "value"),
    ("minus", "0", "zero"),
    ("minus", "123456789", "integer"),
    ("integer", "0123456789", "integer"),
    *((state, ".", "point") for state in ("zero", "integer")),
    *((state, "eE", "e") for state in ("zero", "integer", "fraction")),
    *((state, "0123456789", "fraction") for state in ("point", "fraction")),
    ("e", "+-", "sign"),
    *((state, "0123456789", "exponent") for state in ("e", "sign", "exponent")),
    ("escape", '"\\/bfnrt', "in string"),
    ("escape", "u", "hex 4"),
    *((f"hex {i}", "0123456789abcdefABCDEF", f"hex {i - 1}" if i > 1 else "in string") for i in (1, 2, 3, 4)),
)
_MAX_DEPTH = 256
"""What most JSON readers can still take in; deeper nesting is refused."""


class JsonScanner:
    """Reads one value. Blanks before it are taken, those after it are not."""

    def __init__(self) -> None:
        self._state = "value"
        self._open: list[str] = []  # brackets that wait for their end
        self._string_end = "end"  # the state after the string that is being read

    @property
    def is_complete(self) -> bool:
        """The characters so far are a whole value; a number may still go on."""
        return not self._open and (self._state == "end" or self._state in _NUMBER_ENDS)

    def step(self, char: str) -> bool:
        """Takes `char`, or says no and takes nothing: it cannot stand here, or the value is over."""
        if self._state in _NUMBER_ENDS and (self._state, char) not in _NEXT:
            if not self._open:
                return False
            self._state = "end"
        if self._state == "end" and not self._open:
            return False
        following = self._following(char)
        if following is None:
            return False
        if following in ("string", "key string"):
            self._string_end = "end" if following == "string" else "colon"
            following = "in string"
        self._state = following
        return True

    def _following(self, char: str) -> str | None:
        state = self._state
        if state == "in string":
            if char == '"':
                return self._string_end
            return "escape" if char == "\\" else "in string" if char >= " " else None
        if char in "[{" and state in ("value", "value or ]"):
            if len(self._open) == _MAX_DEPTH:
                return None
            self._open.append(char)
            return "value or ]" if char == "[" else "key or }"
        if self._open:
            inner = self._open[-1]
            if char == "," and state == "end":
                return "value" if inner == "[" else "key"
            if (char == "]" and inner == "[" and state in ("end", "value or ]")) or (
                char == "}" and inner == "{" and state in ("end", "key or }")
            ):
                self._open.pop()
                return "end"
        return _NEXT.get((state, char))
