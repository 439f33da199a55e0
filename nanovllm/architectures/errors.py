"""What an architecture raises. Callers turn these into the project's own tree (`CheckpointError` and the like)."""

__all__ = ["ArchitectureError", "UnknownArchitectureError"]


class ArchitectureError(ValueError):
    """The configuration is incomplete, contradicts itself or asks for something that the architecture file lacks."""


class UnknownArchitectureError(ArchitectureError):
    """No architecture file is named after the configuration's model_type."""
