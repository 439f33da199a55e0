"""Rope types: by how much each pair of features turns slower than in plain rotary position embedding.

In: the name of a type, its parameters and the plain frequencies. Out: one divisor a pair (none: all 1), and the factor
on turned features. A type that is not defined here is refused, because ignoring it would give wrong text, not an error.
"""

import math
from collections.abc import Callable, Sequence

from nanovllm.architectures.config_fields import Config, count, flag, number, numbers
from nanovllm.architectures.errors import ArchitectureError

__all__ = ["original_length", "scaling", "yarn_reach"]

Scaling = tuple[tuple[float, ...], float]
"""Divisors of the frequencies, and the magnitude."""


def scaling(rope_type: object, config: Config, frequencies: Sequence[float], max_model_len: int | None) -> Scaling:
    """Divisors and magnitude of a rope type.

    config: the rope parameters over the fields of config.json. frequencies: the plain ones, radians per position.
    max_model_len: tokens that the model is built for; None: max_position_embeddings. Raises `ArchitectureError`.
    """
    if not isinstance(rope_type, str) or rope_type not in _TYPES:
        raise ArchitectureError(f"rope type {rope_type!r} is not supported; supported: {', '.join(map(repr, _TYPES))}.")
    return _TYPES[rope_type](config, frequencies, max_model_len)


def original_length(config: Config) -> int:
    """Tokens that the model was trained for before its context was extended."""
    return count(config, "original_max_position_embeddings", count(config, "max_position_embeddings"))


def yarn_reach(config: Config) -> int:
    """Tokens to which yarn extends the context: configs may leave max_position_embeddings as it was before."""
    return max(count(config, "max_position_embeddings"), int(original_length(config) * _factor(config)))


def _default(config: Config, frequencies: Sequence[float], max_model_len: int | None) -> Scaling:
    return (), 1.0


def _linear(config: Config, frequencies: Sequence[float], max_model_len: int | None) -> Scaling:
    """Every pair turns slower by one factor."""
    return (_factor(config),) * len(frequencies), 1.0


def _llama3(config: Config, frequencies: Sequence[float], max_model_len: int | None) -> Scaling:
    """Llama 3.1: pairs that turn often within the original context keep their speed, those that turn rarely become
    slower by the factor, and between the two the speed is interpolated."""
    factor, original = _factor(config), original_length(config)
    low, high = _needed(config, "low_freq_factor"), _needed(config, "high_freq_factor")
    if high <= low:
        raise ArchitectureError(f"high_freq_factor is {high}; it must be larger than low_freq_factor ({low}).")
    divisors = []
    for frequency in frequencies:
        turns = original * frequency / (2 * math.pi)
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / (kept + (1 - kept) / factor))
    return tuple(divisors), 1.0


def _longrope(config: Config, frequencies: Sequence[float], max_model_len: int | None) -> Scaling:
    """Phi-3 (arXiv 2402.13753): searched divisors, one set up to the original length, one for longer models.

    Which of the two is settled once, by the length that the model is built for, so that a sequence that grows past the
    original length keeps the meaning of its cached keys. Turned features grow by sqrt(1 + ln(factor) / ln(original)).
    """
    original, longest = original_length(config), count(config, "max_position_embeddings")
    sets = {key: numbers(config, key, len(frequencies)) for key in ("short_factor", "long_factor")}
    divisors = sets["long_factor" if (max_model_len or longest) > original else "short_factor"]
    factor = number(config, "factor", longest / original)
    grown = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return divisors, number(config, "attention_factor", grown)


def _yarn(config: Config, frequencies: Sequence[float], max_model_len: int | None) -> Scaling:
    """YaRN (arXiv 2309.00071): pairs up to one that turns beta_fast times within the original context keep their speed,
    those from one that turns beta_slow times become slower by the factor, with a linear ramp over the index between."""
    factor, original = _factor(config), original_length(config)
    half, theta = len(frequencies), number(config, "rope_theta", 10_000.0)
    if theta <= 1:
        raise ArchitectureError(f"rope_theta is {theta}; yarn needs one above 1.")

    def index(turns: float) -> float:
        """Of the pair that turns so often within the original context."""
        return half * math.log(original / (turns * 2 * math.pi)) / math.log(theta)

    first, last = index(number(config, "beta_fast", 32.0)), index(number(config, "beta_slow", 1.0))
    if flag(config, "truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * half - 1)
    width = last - first or 0.001
    slowed = [min(max((i - first) / width, 0.0), 1.0) for i in range(half)]
    return tuple(1 / (1 - part + part / factor) for part in slowed), number(
        config, "attention_factor", _yarn_magnitude(config, factor)
    )


def _yarn_magnitude(config: Config, factor: float) -> float:
    def grown(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if config.get("mscale") and config.get("mscale_all_dim"):
        return grown(number(config, "mscale", 1.0)) / grown(number(config, "mscale_all_dim", 1.0))
    return grown(1.0)


def _factor(config: Config) -> float:
    return _needed(config, "factor")


def _needed(config: Config, key: str) -> float:
    if config.get(key) is None:
        raise ArchitectureError(f"{key} is missing among the rope parameters; this rope type needs it.")
    return number(config, key, 1.0)


_TYPES: dict[str, Callable[[Config, Sequence[float], int | None], Scaling]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "longrope": _longrope,
    "su": _longrope,  # its name in early Phi-3 configs
    "yarn": _yarn,
}
