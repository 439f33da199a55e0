"""What decoders are, one file a family; a file is named as the `model_type` of the Hugging Face config that it reads.

In: the dict of config.json. Out: a `Decoder`, which says against `Ops` what it computes. Knows no tensor library, no
file and no engine; raises `ArchitectureError`, which callers turn into errors of the project's tree.

To add a family: write its file after qwen2.py and list it in `_FAMILIES`.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

from nanovllm.architectures.config_fields import Config
from nanovllm.architectures.errors import ArchitectureError, UnknownArchitectureError
from nanovllm.architectures.ops import Activation, AttentionSpec, Geometry, Ids, Linear, Ops, Shard, Weight
from nanovllm.architectures.qwen2 import Qwen2Decoder
from nanovllm.architectures.rope import Rope

__all__ = [
    "SUPPORTED_MODEL_TYPES",
    "Activation",
    "ArchitectureError",
    "AttentionSpec",
    "Decoder",
    "Geometry",
    "Ids",
    "Linear",
    "Ops",
    "Rope",
    "Shard",
    "UnknownArchitectureError",
    "Weight",
    "decoder_from_config",
]

V = TypeVar("V")


class Decoder(Protocol):
    """One model: its sizes, and what it computes."""

    @property
    def geometry(self) -> Geometry: ...

    def logits(self, ops: Ops[V]) -> V:
        """Runs the decoder through `ops`; returns the logits of the wanted rows, (num_wanted, vocab_size)."""


_FAMILIES: dict[str, Callable[[Config], Decoder]] = {"qwen2": Qwen2Decoder.from_config}

SUPPORTED_MODEL_TYPES = tuple(_FAMILIES)


def decoder_from_config(config: Config) -> Decoder:
    """The decoder of a config.json. Raises `UnknownArchitectureError` or `ArchitectureError`."""
    model_type = config.get("model_type")
    family = _FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise UnknownArchitectureError(
            f"model_type {model_type!r} is not supported; supported: {', '.join(SUPPORTED_MODEL_TYPES)}."
        )
    return family(config)
