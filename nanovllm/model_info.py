"""model_info.json: what a model is, as the exporter writes it and the runners read it.

In: a folder or the fields. Out: a frozen `ModelInfo`. Knows nothing about ONNX, tensors or the engine. A runner
without an exported folder (mock, remote, torch) fills in a `ModelInfo` itself.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanovllm.errors import ModelInfoError

__all__ = ["MODEL_INFO_FILE", "SCHEMA_VERSION", "KVCacheInfo", "ModelInfo", "TensorInfo", "WeightsFile"]

MODEL_INFO_FILE = "model_info.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """One graph input or output. Symbolic dimensions are strings, such as "num_tokens"."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class KVCacheInfo:
    """How keys and values are stored. `layout` names the axes of one pool; `block_size` is the preferred one, in
    tokens (the graph reads the real one from the pool's shape)."""

    layout: str = "num_blocks,block_size,num_kv_heads,head_dim"
    dtype: str = "float32"
    block_size: int = 32


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """One file of weights beside the graph: its name within the folder, its size in bytes and its SHA-256 in hex."""

    file: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What the engine and a runner must know about a model.

    The engine reads vocab_size (width of a logits row), eos_token_ids, max_model_len (tokens) and the generation
    defaults; a runner reads the rest. `dtype` is the dtype of the arithmetic, `quantization` the format of the weights
    (None: not quantized), `verification` how an export compares with float32 (None: not measured). Fields past `device`
    describe an exported folder and are empty elsewhere.
    """

    model_name: str
    model_type: str
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_model_len: int
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    dtype: str = "float32"
    device: str = "cpu"
    rope: Mapping[str, Any] = field(default_factory=dict)
    kv_cache: KVCacheInfo = field(default_factory=KVCacheInfo)
    quantization: Mapping[str, Any] | None = None
    verification: Mapping[str, Any] | None = None
    generation_defaults: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    tokenizer_files: tuple[str, ...] = ()
    weights: tuple[WeightsFile, ...] = ()
    producer: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    source_revision: str | None = None

    def to_json(self) -> str:
        """The text of model_info.json. `eos_token_id` is an int where there is one, else a list, as in HF configs."""
        eos = self.eos_token_ids
        document = {
            "schema_version": SCHEMA_VERSION,
            "model_name": self.model_name,
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "eos_token_id": eos[0] if len(eos) == 1 else list(eos),
            "bos_token_id": self.bos_token_id,
            "pad_token_id": self.pad_token_id,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "max_model_len": self.max_model_len,
            "dtype": self.dtype,
            "device": self.device,
            "rope": dict(self.rope),
            "kv_cache": vars(self.kv_cache),
            "quantization": self.quantization,
            "verification": self.verification,
            "generation_defaults": dict(self.generation_defaults),
            "inputs": [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in self.inputs],
            "outputs": [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in self.outputs],
            "tokenizer_files": list(self.tokenizer_files),
            "weights": [vars(w) for w in self.weights],
            "producer": dict(self.producer),
            "source": self.source,
            "source_revision": self.source_revision,
        }
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def load(cls, folder: Path) -> "ModelInfo":
        """Reads `folder/model_info.json`. Unknown keys are ignored; anything else amiss raises `ModelInfoError`."""
        path = folder / MODEL_INFO_FILE
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ModelInfoError(f"{path} does not exist. Export the model again.") from None
        except (OSError, ValueError, RecursionError) as error:
            raise ModelInfoError(f"{path} cannot be read as JSON: {error}. Export the model again.") from error
        return cls._from_document(document, path)

    @classmethod
    def _from_document(cls, document: Any, path: Path) -> "ModelInfo":
        if not isinstance(document, dict):
            raise ModelInfoError(f"{path} holds no JSON object. Export the model again.")
        version = document.get("schema_version")
        if not isinstance(version, int) or version < 1:
            raise ModelInfoError(f"{path}: schema_version is {version!r}, not a number. Export the model again.")
        if version > SCHEMA_VERSION:
            raise ModelInfoError(
                f"{path} has schema_version {version}; this version of nanovllm reads up to {SCHEMA_VERSION}. "
                "Upgrade nanovllm or export the model again."
            )
        try:
            return cls(**_fields(document))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
            raise ModelInfoError(f"{path} is not a valid model_info.json: {what}. Export the model again.") from error


def _fields(document: dict[str, Any]) -> dict[str, Any]:
    """Checked constructor arguments of `ModelInfo` from the JSON object. Raises KeyError, TypeError or ValueError."""
    eos = document["eos_token_id"]
    return {
        **{key: _positive(document, key) for key in _COUNTS},
        "model_name": str(document["model_name"]),
        "model_type": str(document["model_type"]),
        "eos_token_ids": () if eos is None else tuple(map(int, eos)) if isinstance(eos, list) else (int(eos),),
        "bos_token_id": document.get("bos_token_id"),
        "pad_token_id": document.get("pad_token_id"),
        "dtype": str(document["dtype"]),
        "device": str(document["device"]),
        "rope": dict(document.get("rope") or {}),
        "kv_cache": KVCacheInfo(**{key: document["kv_cache"][key] for key in ("layout", "dtype", "block_size")}),
        "quantization": document.get("quantization"),
        "verification": document.get("verification"),
        "generation_defaults": dict(document.get("generation_defaults") or {}),
        "inputs": _tensors(document.get("inputs", [])),
        "outputs": _tensors(document.get("outputs", [])),
        "tokenizer_files": tuple(document.get("tokenizer_files", ())),
        "weights": tuple(
            WeightsFile(file=str(w["file"]), num_bytes=int(w["num_bytes"]), sha256=str(w["sha256"]))
            for w in document.get("weights", [])
        ),
        "producer": dict(document.get("producer") or {}),
        "source": str(document.get("source", "")),
        "source_revision": document.get("source_revision"),
    }


_COUNTS = ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "max_model_len")


def _positive(document: dict[str, Any], key: str) -> int:
    value = document[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{key} is {value!r}, not a positive integer")
    return value


def _tensors(entries: list[dict[str, Any]]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(name=e["name"], dtype=e["dtype"], shape=tuple(e["shape"])) for e in entries)
