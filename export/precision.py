"""Which layer gets which precision: the default of `--precision`, the exceptions of `--keep`, and a record of both.

In: the name of a layer. Out: the name of a format. Knows nothing about arithmetic and graphs.
"""

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from nanovllm.architectures import Ids, Shard, Weight
from nanovllm.errors import ConfigError

__all__ = ["LM_HEAD", "PRECISIONS", "KeepRule", "PrecisionPlan", "parse_keep"]

PRECISIONS = {
    "fp32": "weights as float32",
    "fp16": "weights stored as float16, computed in float32",
    "bf16": "weights stored as bfloat16, computed in float32",
    "int8": "int8 weights, one scale a row; inputs quantized to int8 row by row",
    "int8w": "int8 weights in blocks of 128; inputs quantized to int8 in the same blocks",
    "int4": "int4 weights in blocks of 128; inputs quantized to int8 in the same blocks",
}
"""What each stands for. Norms and biases are float32 in all of them."""

LM_HEAD = "lm_head"
"""The name of the layer that gives the logits, in every architecture and where it shares the table of embeddings."""

_FLOATS = ("fp32", "fp16", "bf16")
_OF_TABLES = {"int4": "int8"}  # of embeddings and head, where it is not the precision itself


@dataclass(frozen=True, slots=True)
class KeepRule:
    """Layers whose name matches `pattern` get `precision`.

    A pattern is what fnmatch(3) takes, held against whole parts of the dotted name: "lm_head", "down_proj",
    "layers.0", "layers.*.self_attn", "model.layers.1?.mlp.gate_proj".
    """

    pattern: str
    precision: str

    def matches(self, name: str) -> bool:
        padded = f".{name}."
        return fnmatchcase(padded, f"*.{self.pattern}.*")


def parse_keep(rules: Iterable[str]) -> tuple[KeepRule, ...]:
    """Rules from texts of the form PATTERN=PRECISION[,PATTERN=PRECISION ...]. Raises `ConfigError`."""
    parsed = []
    for text in ",".join(rules).split(","):
        if not text.strip():
            continue
        pattern, equals, precision = text.strip().partition("=")
        if not equals or not pattern:
            raise ConfigError(f"keep has {text.strip()!r}; it must be PATTERN=PRECISION, such as lm_head=fp32.")
        parsed.append(KeepRule(pattern, check_precision(precision)))
    return tuple(parsed)


def check_precision(precision: str) -> str:
    """`precision`, where it is one. Raises `ConfigError`."""
    if precision not in PRECISIONS:
        near = difflib.get_close_matches(precision, PRECISIONS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"precision is {precision!r}; this version exports {', '.join(PRECISIONS)}.{hint}")
    return precision


class PrecisionPlan:
    """Gives layers their precision and remembers what it gave. The first rule that matches counts."""

    def __init__(self, precision: str = "fp32", keep: Iterable[KeepRule] = ()) -> None:
        self.precision = check_precision(precision)
        self.keep = tuple(keep)
        self._given: dict[str, str] = {}

    def of_linear(self, weight: Weight, shard: Shard) -> str:
        """The precision of a linear layer."""
        if shard == "vocab":
            return self._give(LM_HEAD, self._of_tables)
        return self._give(_layer_name(weight), self.precision)

    def of_embedding(self, table: Weight, ids: Ids) -> str:
        """The precision of a table of embeddings. One of positions is small and matters in every layer: a float."""
        if ids == "token_ids":
            return self._give(_layer_name(table), self._of_tables)
        return self._give(_layer_name(table), self.precision if self.precision in _FLOATS else "fp32")

    @property
    def _of_tables(self) -> str:
        return _OF_TABLES.get(self.precision, self.precision)

    def kinds(self) -> dict[str, dict[str, int]]:
        """Number of layers of each precision, by kind of layer, such as "self_attn.q_proj"."""
        counts: dict[str, Counter[str]] = {}
        for name, precision in self._given.items():
            counts.setdefault(_kind(name), Counter())[precision] += 1
        return {kind: dict(count) for kind, count in counts.items()}

    def check_all_used(self) -> None:
        """Raises `ConfigError` where a rule of `keep` matches no layer."""
        for rule in self.keep:
            if not any(rule.matches(name) for name in self._given):
                raise ConfigError(f"keep names {rule.pattern!r}, but no layer matches it. {self._hint(rule.pattern)}")

    def as_document(self) -> Mapping[str, Any] | None:
        """What model_info.json says: None where every layer is float32."""
        kinds = self.kinds()
        used = {precision for counts in kinds.values() for precision in counts}
        if used == {"fp32"}:
            return None
        return {
            "precision": self.precision,
            "keep": {rule.pattern: rule.precision for rule in self.keep},
            "layers": kinds,
            "meaning": {precision: PRECISIONS[precision] for precision in PRECISIONS if precision in used},
        }

    def _give(self, name: str, default: str) -> str:
        precision = next((rule.precision for rule in self.keep if rule.matches(name)), default)
        self._given[name] = precision
        return precision

    def _hint(self, pattern: str) -> str:
        kinds = list(self.kinds())
        parts = [part for kind in kinds for part in (*kind.split("."), kind)]
        near = difflib.get_close_matches(pattern, parts, n=1)
        return f"Did you mean {near[0]!r}?" if near else f"Kinds of layers here: {', '.join(kinds)}."


def _layer_name(weight: Weight) -> str:
    return weight.name.removesuffix(".weight")


def _kind(name: str) -> str:
    """A layer's name without what counts layers: all after the last number, or the last part."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbers[-1] + 1 :] if numbers else parts[-1:])
