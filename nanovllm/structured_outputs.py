"""StructuredOutputsParams: the form that a request's output must have. Names and meanings are vLLM's.

Plain values, checked when they are made. Knows nothing about how a form is enforced (`nanovllm.engine.grammar`).
"""

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

__all__ = ["StructuredOutputsParams"]


@dataclass(frozen=True, kw_only=True)
class StructuredOutputsParams:
    """Exactly one of json, regex, choice, grammar and json_object.

    json: a JSON schema, as text or as a mapping. regex: the whole output matches it. choice: the output is one of
    these strings. grammar: in Lark's syntax. json_object: any JSON object.
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Seq[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
