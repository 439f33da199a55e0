"""Typed readings of single fields of a Hugging Face config.json. Each raises `ArchitectureError` naming the field."""

from collections.abc import Mapping
from typing import Any

from nanovllm.architectures.errors import ArchitectureError

__all__ = ["Config", "choice", "count", "flag", "number"]

Config = Mapping[str, Any]


def count(config: Config, key: str, default: int | None = None) -> int:
    """A positive integer. A missing or null field gives `default`; without a default that is an error."""
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise ArchitectureError(f"{key} is missing; a positive integer is needed.")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ArchitectureError(f"{key} is {value!r}; it must be a positive integer.")
    return value


def number(config: Config, key: str, default: float) -> float:
    """A positive number; `default` where the field is missing or null."""
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise ArchitectureError(f"{key} is {value!r}; it must be a positive number.")
    return float(value)


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
