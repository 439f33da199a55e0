"""`ModelInfo` of a checkpoint that is run as it is.

In: the checkpoint, the decoder's sizes and the dtype. Out: the record that the engine reads.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from nanovllm.architectures import Geometry
from nanovllm.checkpoint import Checkpoint
from nanovllm.errors import CheckpointError
from nanovllm.model_info import KVCacheInfo, ModelInfo

__all__ = ["make_model_info"]

_GENERATION_FIELDS = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens")


def make_model_info(
    checkpoint: Checkpoint, geometry: Geometry, *, name: str, dtype: str, device: str, quantization: str | None
) -> ModelInfo:
    """Raises `CheckpointError` where a token id of the configs is not one."""
    generation = checkpoint.generation_config
    return ModelInfo(
        model_name=name,
        model_type=geometry.model_type,
        vocab_size=geometry.vocab_size,
        eos_token_ids=_token_ids(checkpoint, "eos_token_id"),
        bos_token_id=next(iter(_token_ids(checkpoint, "bos_token_id")), None),
        pad_token_id=next(iter(_token_ids(checkpoint, "pad_token_id")), None),
        hidden_size=geometry.hidden_size,
        num_layers=geometry.num_layers,
        num_heads=geometry.num_heads,
        num_kv_heads=geometry.num_kv_heads,
        head_dim=geometry.head_dim,
        max_model_len=geometry.max_model_len,
        dtype=dtype,
        device=device,
        kv_cache=KVCacheInfo(dtype=dtype),
        quantization=None if quantization is None else {"format": quantization},
        generation_defaults={key: generation[key] for key in _GENERATION_FIELDS if generation.get(key) is not None},
        source=str(checkpoint.folder),
    )


def _token_ids(checkpoint: Checkpoint, key: str) -> tuple[int, ...]:
    """The ids under `key`, of generation_config.json first, then of config.json: transformers stops by the former."""
    sources: Sequence[Mapping[str, Any]] = (checkpoint.generation_config, checkpoint.config)
    value = next((source[key] for source in sources if source.get(key) is not None), ())
    ids = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise CheckpointError(f"{checkpoint.folder}: {key} is {value!r}; it must be a token id or a list of them.")
    return ids
