"""model_info.json of an export, drawn from the checkpoint's configs, the decoder's sizes and the graph."""

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from export.graph import OnnxGraph
from nanovllm.architectures import Geometry, Rope
from nanovllm.checkpoint import Checkpoint
from nanovllm.checkpoint_decoder import checkpoint_info
from nanovllm.model_info import KVCacheInfo, ModelInfo, WeightsFile

__all__ = ["TOKENIZER_FILES", "make_model_info", "package_version"]

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json"),
)
"""What a tokenizer or a chat template may consist of."""


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
    return replace(
        checkpoint_info(checkpoint, geometry, name),
        max_model_len=max_model_len,
        rope={} if geometry.rope is None else _rope(geometry.rope, checkpoint.config),
        kv_cache=KVCacheInfo(block_size=block_size),
        quantization=quantization,
        inputs=graph.inputs,
        outputs=graph.outputs,
        tokenizer_files=tuple(file for file in TOKENIZER_FILES if (checkpoint.folder / file).is_file()),
        weights=(weights,),
        producer={package: package_version(package) for package in ("nanovllm", "onnx", "numpy")},
        source=source,
        source_revision=_snapshot_revision(checkpoint.folder),
    )


def _rope(rope: Rope, config: Mapping[str, Any]) -> dict[str, Any]:
    """scaling: see `_rope_scaling`."""
    scaling = _rope_scaling(rope, config)
    return {"theta": rope.theta, "dim": rope.dim, "interleaved": rope.interleaved, "scaling": scaling}


def _rope_scaling(rope: Rope, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """rope_type and its parameters as config.json gives them, in either dialect; None for plain rotary embedding.

    Where the layers have several ropes, the whole object of config.json, by type of layer. longrope has two sets of
    factors: "picked" names the one in the graph.
    """
    given: dict[str, Any] = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if any(isinstance(value, dict) for value in given.values()):
        return given
    rope_type = given.get("rope_type", given.get("type", "default"))
    if rope_type == "default":
        return None
    scaling = {"rope_type": rope_type, **{key: given[key] for key in given if key not in _NOT_OF_SCALING}}
    if config.get(_ORIGINAL_LENGTH) is not None:
        scaling[_ORIGINAL_LENGTH] = config[_ORIGINAL_LENGTH]
    for factors in ("long_factor", "short_factor"):
        if tuple(given.get(factors, ())) == rope.divisors:
            scaling["picked"] = factors
    return scaling


_NOT_OF_SCALING = ("type", "rope_type", "rope_theta", "partial_rotary_factor")
_ORIGINAL_LENGTH = "original_max_position_embeddings"  # Phi-3 keeps it outside of the object


def package_version(package: str) -> str:
    """Version of an installed package, "unknown" where it runs from a bare source tree."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _snapshot_revision(folder: Path) -> str | None:
    """The commit, where the folder lies in the hub's cache (models--ORG--NAME/snapshots/COMMIT)."""
    return folder.name if folder.parent.name == "snapshots" else None
