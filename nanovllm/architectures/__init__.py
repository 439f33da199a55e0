"""What decoders are, one file a family; a file is named as the `model_type` of the Hugging Face config that it reads.

In: the dict of config.json. Out: a `Decoder`, which says against `Ops` what it computes. Knows no tensor library, no
file and no engine; raises `ArchitectureError`, which callers turn into errors of the project's tree.

To add a family: write its file after llama.py and list it in `_FAMILIES`.
"""

import difflib
from collections.abc import Callable, Collection
from typing import Protocol, TypeVar

from nanovllm.architectures.config_fields import Config
from nanovllm.architectures.errors import ArchitectureError, UnknownArchitectureError
from nanovllm.architectures.falcon import FalconDecoder
from nanovllm.architectures.gemma2 import Gemma2Decoder
from nanovllm.architectures.gemma3_text import Gemma3TextDecoder
from nanovllm.architectures.geometry import Context
from nanovllm.architectures.gpt2 import GPT2Decoder
from nanovllm.architectures.granite import GraniteDecoder
from nanovllm.architectures.granitemoe import GraniteMoeDecoder
from nanovllm.architectures.llama import LlamaDecoder
from nanovllm.architectures.mistral import MistralDecoder
from nanovllm.architectures.ops import (
    Activation,
    AttentionSpec,
    GatedMLP,
    Geometry,
    Ids,
    Linear,
    Mixture,
    Ops,
    Shard,
    Stored,
    Weight,
)
from nanovllm.architectures.phi import PhiDecoder
from nanovllm.architectures.phi3 import Phi3Decoder
from nanovllm.architectures.qwen2 import Qwen2Decoder
from nanovllm.architectures.qwen3 import Qwen3Decoder
from nanovllm.architectures.qwen3_moe import Qwen3MoeDecoder
from nanovllm.architectures.rope import Rope

__all__ = [
    "SUPPORTED_MODEL_TYPES",
    "Activation",
    "ArchitectureError",
    "AttentionSpec",
    "Decoder",
    "GatedMLP",
    "Geometry",
    "Ids",
    "Linear",
    "Mixture",
    "Ops",
    "Rope",
    "Shard",
    "Stored",
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


_FAMILIES: dict[str, Callable[[Config, Context], Decoder]] = {
    "qwen2": Qwen2Decoder.from_config,
    "qwen3": Qwen3Decoder.from_config,
    "llama": LlamaDecoder.from_config,
    "mistral": MistralDecoder.from_config,
    "phi": PhiDecoder.from_config,
    "phi3": Phi3Decoder.from_config,
    "gpt2": GPT2Decoder.from_config,
    "gemma2": Gemma2Decoder.from_config,
    "gemma3_text": Gemma3TextDecoder.from_config,
    "falcon": FalconDecoder.from_config,
    "granite": GraniteDecoder.from_config,
    "granitemoe": GraniteMoeDecoder.from_config,
    "qwen3_moe": Qwen3MoeDecoder.from_config,
}

SUPPORTED_MODEL_TYPES = tuple(_FAMILIES)


def decoder_from_config(
    config: Config, *, max_model_len: int | None = None, tensor_names: Collection[str] = ()
) -> Decoder:
    """The decoder of a config.json. Raises `UnknownArchitectureError` or `ArchitectureError`.

    max_model_len: tokens that it is built for, by default as many as the config allows; some rope types depend on it.
    tensor_names: of the checkpoint, for families whose weights come in several layouts; by default the hub's.
    """
    model_type = config.get("model_type")
    family = _FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise UnknownArchitectureError(_unknown(model_type))
    if config.get("quantization_config"):
        raise ArchitectureError(
            "quantization_config is set: the weights are quantized already. Use the original, unquantized checkpoint."
        )
    return family(config, Context(max_model_len=max_model_len, tensor_names=tensor_names))


def _unknown(model_type: object) -> str:
    near = difflib.get_close_matches(str(model_type), SUPPORTED_MODEL_TYPES, n=2, cutoff=0.65)
    hint = f" The nearest: {', '.join(near)}." if near else ""
    return (
        f"model_type {model_type!r} is not supported; supported: {', '.join(SUPPORTED_MODEL_TYPES)}.{hint} "
        "Other families may be exported with `--exporter optimum`."
    )
