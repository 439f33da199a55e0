"""model_info.json of an export, drawn from the checkpoint's configs, the decoder's sizes and the graph."""

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from export.graph import OnnxGraph
from nanovllm.architectures import Geometry
from nanovllm.checkpoint import Checkpoint
from nanovllm.errors import CheckpointError
from nanovllm.model_info import KVCacheInfo, ModelInfo, WeightsFile

__all__ = ["TOKENIZER_FILES", "make_model_info", "package_version"]

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json"),
)
"""What a tokenizer or a chat template may consist of."""

_GENERATION_FIELDS = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens")


def make_model_info(
    checkpoint: Checkpoint,
    geometry: Geometry,
    graph: OnnxGraph,
    weights: WeightsFile,
    *,
    name: str,
    source: str,
    max_model_len: int,
    block_size: int,
    quantization: Mapping[str, Any] | None = None,
) -> ModelInfo:
    """Raises `CheckpointError` where a token id of the configs is not one."""
    generation = checkpoint.generation_config
    rope = geometry.rope
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
        max_model_len=max_model_len,
        rope={} if rope is None else {"theta": rope.theta, "dim": rope.dim, "interleaved": rope.interleaved},
        kv_cache=KVCacheInfo(block_size=block_size),
        quantization=quantization,
        generation_defaults={key: generation[key] for key in _GENERATION_FIELDS if generation.get(key) is not None},
        inputs=graph.inputs,
        outputs=graph.outputs,
        tokenizer_files=tuple(file for file in TOKENIZER_FILES if (checkpoint.folder / file).is_file()),
        weights=(weights,),
        producer={package: package_version(package) for package in ("nanovllm", "onnx", "numpy")},
        source=source,
        source_revision=_snapshot_revision(checkpoint.folder),
    )


def package_version(package: str) -> str:
    """Version of an installed package, "unknown" where it runs from a bare source tree."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _token_ids(checkpoint: Checkpoint, key: str) -> tuple[int, ...]:
    """The ids under `key`, of generation_config.json first, then of config.json: transformers stops by the former."""
    sources: Sequence[Mapping[str, Any]] = (checkpoint.generation_config, checkpoint.config)
    value = next((source[key] for source in sources if source.get(key) is not None), ())
    ids = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise CheckpointError(f"{checkpoint.folder}: {key} is {value!r}; it must be a token id or a list of them.")
    return ids


def _snapshot_revision(folder: Path) -> str | None:
    """The commit, where the folder lies in the hub's cache (models--ORG--NAME/snapshots/COMMIT)."""
    return folder.name if folder.parent.name == "snapshots" else None
