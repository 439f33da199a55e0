"""Typed readings of single fields of a Hugging Face config.json. Each raises `ArchitectureError` naming the field."""

import math
from collections.abc import Mapping
from typing import Any

from nanovllm.architectures.errors import ArchitectureError

__all__ = ["Config", "choice", "count", "flag", "number", "numbers", "optional_count", "optional_number", "refuse"]

Config = Mapping[str, Any]


def count(config: Config, key: str, default: int | None = None, *, minimum: int = 1) -> int:
    """An integer of at least `minimum`. A missing or null field gives `default`; without one that is an error."""
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise ArchitectureError(f"{key} is missing; an integer of at least {minimum} is needed.")
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ArchitectureError(f"{key} is {value!r}; it must be an integer of at least {minimum}.")
    return value


def optional_count(config: Config, key: str, default: int | None = None) -> int | None:
    """A positive integer or null, which gives None; `default` where the field is missing."""
    return None if config.get(key, default) is None else count(config, key, default)


def number(config: Config, key: str, default: float) -> float:
    """A positive number; `default` where the field is missing or null."""
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise ArchitectureError(f"{key} is {value!r}; it must be a positive number.")
    return float(value)


def optional_number(config: Config, key: str, default: float | None = None) -> float | None:
    """A positive number or null, which gives None; `default` where the field is missing."""
    return None if config.get(key, default) is None else number(config, key, math.nan if default is None else default)


def flag(config: Config, key: str, default: bool) -> bool:
    """true or false; `default` where the field is missing or null."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ArchitectureError(f"{key} is {value!r}; it must be true or false.")
    return value


def choice(config: Config, key: str, allowed: tuple[str, ...], default: str) -> str:
    """One of `allowed`; `default` where the field is missing or null."""
    value = config.get(key)
    if value is None:
        return default
    if value not in allowed:
        raise ArchitectureError(f"{key} is {value!r}; supported: {', '.join(allowed)}.")
    return str(value)


def numbers(config: Config, key: str, length: int) -> tuple[float, ...]:
    """A list of `length` positive numbers."""
    values = config.get(key)
    if not isinstance(values, list | tuple) or len(values) != length:
        given = f"of length {len(values)}" if isinstance(values, list | tuple) else repr(values)
        raise ArchitectureError(f"{key} is {given}; it must be a list of {length} positive numbers.")
    return tuple(number({key: value}, key, math.nan) for value in values)


def refuse(config: Config, *keys: str) -> None:
    """Refuses fields that change the arithmetic in a way that the family's file lacks, wherever they are set."""
    for key in keys:
        value = config.get(key)
        if value is not None and value is not False:
            raise ArchitectureError(f"{key} is {value!r}, which is not supported for this family.")
