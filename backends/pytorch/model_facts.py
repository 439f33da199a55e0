"""`ModelInfo` of a checkpoint that is run as it is.

In: the checkpoint, the decoder's sizes and the dtype. Out: the record that the engine reads.
"""

from dataclasses import replace

from nanovllm.architectures import Geometry
from nanovllm.checkpoint import Checkpoint
from nanovllm.checkpoint_decoder import checkpoint_info
from nanovllm.model_info import KVCacheInfo, ModelInfo

__all__ = ["make_model_info"]


def make_model_info(
    checkpoint: Checkpoint, geometry: Geometry, *, name: str, dtype: str, device: str, quantization: str | None
) -> ModelInfo:
    """Raises `CheckpointError` where a token id of the configs is not one."""
    return replace(
        checkpoint_info(checkpoint, geometry, name),
        dtype=dtype,
        device=device,
        kv_cache=KVCacheInfo(dtype=dtype),
        quantization=None if quantization is None else {"format": quantization},
    )
