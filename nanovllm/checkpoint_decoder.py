"""What a checkpoint's configs say about its decoder: the definition, and the facts that a `ModelInfo` starts from.

In: a checkpoint. Out: `Decoder`, `ModelInfo`. For runners and exporters of Hugging Face checkpoints. Knows no tensor.
"""

from nanovllm.architectures import (
    ArchitectureError,
    Decoder,
    Geometry,
    UnknownArchitectureError,
    decoder_from_config,
)
from nanovllm.checkpoint import CONFIG_FILE, Checkpoint, generation_defaults, special_token_ids
from nanovllm.errors import CheckpointError, UnsupportedModelError
from nanovllm.model_info import ModelInfo

__all__ = ["checkpoint_info", "read_decoder"]


def read_decoder(checkpoint: Checkpoint, max_model_len: int | None) -> Decoder:
    """What config.json describes, for sequences of up to max_model_len tokens; None: as many as it allows. Raises
    `UnsupportedModelError` or `CheckpointError`."""
    path = checkpoint.folder / CONFIG_FILE
    try:
        return decoder_from_config(checkpoint.config, max_model_len=max_model_len, tensor_names=checkpoint.tensors)
    except UnknownArchitectureError as error:
        raise UnsupportedModelError(f"{path}: {error}") from error
    except ArchitectureError as error:
        raise CheckpointError(f"{path}: {error}") from error


def checkpoint_info(checkpoint: Checkpoint, geometry: Geometry, name: str) -> ModelInfo:
    """Sizes, token ids and generation defaults; all else is left as it is in a new `ModelInfo`. Raises
    `CheckpointError` where a token id of the configs is not one."""
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
        generation_defaults=generation_defaults(checkpoint),
        source=str(checkpoint.folder),
    )
