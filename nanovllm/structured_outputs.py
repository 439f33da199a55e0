"""StructuredOutputsParams: the form that a request's output must have. Names and meanings are vLLM's.

Plain values, checked when they are made. Knows nothing about how a form is enforced (`nanovllm.engine.grammar`).
"""

import json
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

from nanovllm.errors import SamplingParamsError

__all__ = ["StructuredOutputsParams"]

_FORMS = ("json", "regex", "choice", "grammar", "json_object")


@dataclass(frozen=True, kw_only=True)
class StructuredOutputsParams:
    """Exactly one of json, regex, choice, grammar and json_object, and for the two JSON forms how they are written.

    json: a JSON schema, as text or as a mapping. regex: the whole output matches it. choice: the output is one of
    these strings. grammar: in Lark's syntax or in GBNF. json_object: any JSON object; False is the same as None.

    disable_any_whitespace: no white space between JSON tokens. whitespace_pattern: a regular expression of the white
    space that may stand there; what it matches beyond space, tab and line ends makes the output invalid JSON.
    disable_additional_properties: every object schema that lists properties and says nothing of others allows no
    others. Key "x-guidance" of a schema sets llguidance's own options.

    Raises `SamplingParamsError`. Whether the form can be enforced is known only when the engine compiles it.
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Seq[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None

    def __post_init__(self) -> None:
        for name in ("disable_any_whitespace", "disable_additional_properties"):
            if not isinstance(getattr(self, name), bool):
                raise SamplingParamsError(f"{name} is {getattr(self, name)!r}; it must be True or False.")
        if self.json_object not in (None, True, False):
            raise SamplingParamsError(f"json_object is {self.json_object!r}; it must be True, False or None.")
        self._check_one_form()
        for name in ("regex", "grammar"):
            if getattr(self, name) is not None:
                _check_text(name, getattr(self, name))
        self._check_choice()
        if self.json is not None:
            self.json_schema()
        self._check_json_options()

    def json_schema(self) -> dict[str, Any]:
        """A copy of the schema that `json` gives."""
        try:
            text = self.json if isinstance(self.json, str) else json.dumps(self.json, allow_nan=False, default=dict)
            schema = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise SamplingParamsError(f"json is no JSON schema: {error}. Give a JSON object, or its text.") from error
        if not isinstance(schema, dict):
            raise SamplingParamsError(f"json is {schema!r}; a JSON schema must be an object here.")
        return schema

    def _check_one_form(self) -> None:
        given = [name for name in _FORMS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            raise SamplingParamsError(
                f"structured_outputs has {' and '.join(given) or 'no form'}; give exactly one of {', '.join(_FORMS)}."
            )

    def _check_choice(self) -> None:
        if self.choice is None:
            return
        if isinstance(self.choice, str) or not isinstance(self.choice, Seq) or not self.choice:
            raise SamplingParamsError(f"choice is {self.choice!r}; it must be a list of one or more strings.")
        for text in self.choice:
            _check_text("a choice", text)

    def _check_json_options(self) -> None:
        if self.whitespace_pattern is not None:
            _check_text("whitespace_pattern", self.whitespace_pattern)
        if self.disable_any_whitespace and self.whitespace_pattern is not None:
            raise SamplingParamsError("disable_any_whitespace and whitespace_pattern contradict each other; give one.")
        if self.json is not None:
            return
        if self.disable_additional_properties:
            raise SamplingParamsError("disable_additional_properties has a meaning with json only; leave it out.")
        if not self.json_object and (self.disable_any_whitespace or self.whitespace_pattern is not None):
            raise SamplingParamsError(
                "disable_any_whitespace and whitespace_pattern have a meaning with json and json_object only; "
                "leave them out."
            )


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value or any("\ud800" <= char <= "\udfff" for char in value):
        raise SamplingParamsError(f"{name} is {value!r}; it must be a non-empty string of Unicode text.")
