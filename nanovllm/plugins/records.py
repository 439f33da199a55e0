"""The typed records that plugins register, and what their factories are given."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nanovllm.config import EngineConfig
from nanovllm.plugins.interfaces import KVMode, ModelRunner, Tokenizer

__all__ = ["KVMode", "ModelRunnerPlugin", "ModelSource", "TokenizerPlugin", "Verdict"]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model as the user named it, and the local folder it was resolved to (None: a name without a folder)."""

    name: str
    folder: Path | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a plugin can load a model, and the reason in words, both ways."""

    loadable: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class ModelRunnerPlugin:
    """A backend. `name` is what the user types; the highest `priority` whose `can_load` agrees is chosen otherwise.

    can_load must be quick and import nothing heavy; factory may be slow. `needs_folder` is False for a backend that
    runs without a model folder, so that any name will do.
    """

    name: str
    factory: Callable[[ModelSource, EngineConfig], ModelRunner]
    can_load: Callable[[ModelSource], Verdict]
    priority: int = 0
    devices: tuple[str, ...] = ("cpu",)
    needs_folder: bool = True
    kv: KVMode = "paged"
    tensor_parallel: bool = False
    """Whether the factory honours `EngineConfig.tensor_parallel_size`; one that does not is never given more than 1."""
    tokenizer: str | None = None
    """Name of the tokenizer plugin to use where the user names none and the model has no folder."""
    status: Callable[[], str] | None = None
    """Says in words what is worth knowing about the installation, such as which compiled kernels are active."""


@dataclass(frozen=True, kw_only=True)
class TokenizerPlugin:
    """A kind of tokenizer, chosen as a backend is."""

    name: str
    factory: Callable[[ModelSource], Tokenizer]
    can_load: Callable[[ModelSource], Verdict]
    priority: int = 0
