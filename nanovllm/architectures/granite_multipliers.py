"""The four multipliers that the Granite families have in common."""

from dataclasses import dataclass

from nanovllm.architectures.config_fields import Config, number

__all__ = ["GraniteMultipliers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraniteMultipliers:
    """embedding: on embeddings. attention: on scores, instead of 1 / sqrt(head_dim). residual: on what attention and
    MLP add. logits_scaling: logits are divided by it."""

    embedding: float
    attention: float
    residual: float
    logits_scaling: float

    @classmethod
    def from_config(cls, config: Config) -> "GraniteMultipliers":
        """Raises `ArchitectureError`."""
        return cls(
            embedding=number(config, "embedding_multiplier", 1.0),
            attention=number(config, "attention_multiplier", 1.0),
            residual=number(config, "residual_multiplier", 1.0),
            logits_scaling=number(config, "logits_scaling", 1.0),
        )
