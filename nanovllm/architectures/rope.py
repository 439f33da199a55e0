"""Rotary position embedding: its parameters, read from either dialect of config.json.

transformers 4 writes `rope_theta` and `rope_scaling` at the top level; transformers 5 writes one `rope_parameters`
object. What the rope types compute stands in rope_scaling.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nanovllm.architectures.config_fields import Config, count, number
from nanovllm.architectures.errors import ArchitectureError
from nanovllm.architectures.rope_scaling import scaling, yarn_reach

__all__ = ["Rope", "longest_context", "make_rope", "rope_from_config", "rope_object"]

_DEFAULT_THETA = 10_000.0  # transformers' default, and that of the RoFormer paper (arXiv 2104.09864)
_NOT_READ = ("mrope_section", "short_mscale", "long_mscale")  # of families that have no file here


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotation of the first `dim` features of each head.

    The pair i of a token at position p turns by p * theta ** (-2 i / dim) / divisors[i] radians; no divisors: all 1. A
    pair is features (i, i + dim / 2), or (2 i, 2 i + 1) where `interleaved`. Turned features are multiplied by
    `magnitude`.
    """

    theta: float
    dim: int
    interleaved: bool = False
    divisors: tuple[float, ...] = ()
    magnitude: float = 1.0

    def inverse_frequencies(self) -> list[float]:
        """Radians per position of each of the dim / 2 pairs."""
        divisors = self.divisors or (1.0,) * (self.dim // 2)
        return [self.theta ** (-2.0 * i / self.dim) / divisor for i, divisor in enumerate(divisors)]


def rope_from_config(config: Config, head_dim: int, *, max_model_len: int | None = None) -> Rope:
    """The `Rope` of a config.json that has one for all layers. Raises `ArchitectureError`.

    max_model_len: tokens that the model is built for, where that is not the config's max_position_embeddings.
    """
    return make_rope(_parameters(config), config, head_dim, max_model_len=max_model_len)


def make_rope(
    parameters: Mapping[str, Any], config: Config, head_dim: int, *, max_model_len: int | None = None
) -> Rope:
    """The `Rope` of one set of parameters; what they lack is taken from `config`. Raises `ArchitectureError`."""
    for key in _NOT_READ:
        if parameters.get(key) is not None:
            raise ArchitectureError(f"the rope parameter {key} is {parameters[key]!r}; it is not supported.")
    merged = _merged(parameters, config)
    dim = head_dim * number(merged, "partial_rotary_factor", 1.0)
    if dim != int(dim) or int(dim) % 2 or dim > head_dim:
        raise ArchitectureError(f"partial_rotary_factor leaves {dim} of {head_dim} features; it must be even.")
    theta = number(merged, "rope_theta", _DEFAULT_THETA)
    plain = Rope(theta=theta, dim=int(dim))
    divisors, magnitude = scaling(_type(parameters), merged, plain.inverse_frequencies(), max_model_len)
    return replace(plain, divisors=divisors, magnitude=magnitude)


def longest_context(config: Config) -> int:
    """Tokens of the longest sequence: max_position_embeddings, or further where yarn extends it and the field does not
    say so. Raises `ArchitectureError`."""
    parameters = rope_object(config, "rope_parameters") or rope_object(config, "rope_scaling")
    if _type(parameters) == "yarn":
        return yarn_reach(_merged(parameters, config))
    return count(config, "max_position_embeddings")


def _parameters(config: Config) -> dict[str, Any]:
    """The one set of parameters for all layers."""
    parameters = rope_object(config, "rope_parameters") or rope_object(config, "rope_scaling")
    if any(isinstance(value, dict) for value in parameters.values()):
        raise ArchitectureError(
            f"rope_parameters differs by layer type ({', '.join(parameters)}); supported here: one set for all layers."
        )
    return parameters


def _merged(parameters: Mapping[str, Any], config: Config) -> Config:
    """The fields of config.json with the parameters over them. The original length of the config itself comes first, as
    in transformers: Phi-3 keeps it there."""
    original = {key: config[key] for key in ("original_max_position_embeddings",) if config.get(key) is not None}
    return {**config, **{key: value for key, value in parameters.items() if value is not None}, **original}


def _type(parameters: Mapping[str, Any]) -> object:
    return parameters.get("rope_type", parameters.get("type", "default"))


def rope_object(config: Config, key: str) -> dict[str, Any]:
    """The object of that name, {} where it is missing, null or empty. Raises `ArchitectureError`."""
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise ArchitectureError(f"{key} is {value!r}; it must be an object.")
    return value
