"""Rotary position embedding: its parameters, read from either dialect of config.json.

transformers 4 writes `rope_theta` and `rope_scaling` at the top level; transformers 5 writes one `rope_parameters`
object. A rope type that is not defined here is refused, because ignoring it would give wrong text, not an error.
"""

from dataclasses import dataclass
from typing import Any

from nanovllm.architectures.config_fields import Config, number
from nanovllm.architectures.errors import ArchitectureError

__all__ = ["Rope", "rope_from_config"]

_DEFAULT_THETA = 10_000.0  # transformers' default, and that of the RoFormer paper (arXiv 2104.09864)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotation of the first `dim` features of each head.

    The pair i of a token at position p turns by p * theta ** (-2 i / dim) radians. A pair is features (i, i + dim / 2),
    or (2 i, 2 i + 1) where `interleaved`.
    """

    theta: float
    dim: int
    interleaved: bool = False

    def inverse_frequencies(self) -> list[float]:
        """Radians per position of each of the dim / 2 pairs."""
        return [self.theta ** (-2.0 * i / self.dim) for i in range(self.dim // 2)]


def rope_from_config(config: Config, head_dim: int) -> Rope:
    """The `Rope` of a config.json. Raises `ArchitectureError` for a rope type other than "default"."""
    parameters = _object(config, "rope_parameters") or _object(config, "rope_scaling")
    rope_type = parameters.get("rope_type", parameters.get("type", "default"))
    if rope_type != "default":
        raise ArchitectureError(f"rope type {rope_type!r} is not supported; supported: 'default'.")
    merged = {**config, **{key: value for key, value in parameters.items() if value is not None}}
    dim = head_dim * number(merged, "partial_rotary_factor", 1.0)
    if dim != int(dim) or int(dim) % 2 or dim > head_dim:
        raise ArchitectureError(f"partial_rotary_factor leaves {dim} of {head_dim} features; it must be even.")
    return Rope(theta=number(merged, "rope_theta", _DEFAULT_THETA), dim=int(dim))


def _object(config: Config, key: str) -> dict[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise ArchitectureError(f"{key} is {value!r}; it must be an object.")
    if any(isinstance(inner, dict) for inner in value.values()):
        raise ArchitectureError(f"{key} differs by layer type ({', '.join(value)}); supported: one set for all layers.")
    return value
