"""`ModelInfo` of a checkpoint that is run as it is.

In: the checkpoint, the decoder's sizes and the dtype. Out: the record that the engine reads.
"""

from nanovllm.architectures import Geometry
from nanovllm.checkpoint import Checkpoint, generation_defaults, special_token_ids
from nanovllm.model_info import KVCacheInfo, ModelInfo

__all__ = ["make_model_info"]


def make_model_info(
    checkpoint: Checkpoint, geometry: Geometry, *, name: str, dtype: str, device: str, quantization: str | None
) -> ModelInfo:
    """Raises `CheckpointError` where a token id of the configs is not one."""
    return ModelInfo(
        model_name=name,
        model_type=geometry.model_type,
        vocab_size=geometry.vocab_size,
        eos_token_ids=special_token_ids(checkpoint, "eos_token_id"),
        bos_token_id=next(iter(special_token_ids(checkpoint, "bos_token_id")), None),
        pad_token_id=next(iter(special_token_ids(checkpoint, "pad_token_id")), None),
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
        generation_defaults=generation_defaults(checkpoint),
        source=str(checkpoint.folder),
    )
