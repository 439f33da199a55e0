"""Recognises folders of decoders that other tools exported, and reads what their configs say of the model.

In: a folder. Out: the graph's file and a `DecoderFacts`. Three layouts are known:

    genai_config.json + the file that it names            onnxruntime-genai's model builder
    config.json + model.onnx                              optimum
    config.json + onnx/model.onnx, onnx/model_q4.onnx ... onnx-community

Keys that are not needed here are ignored, whatever they say. Loads no onnxruntime: what the graph itself takes and
gives is found out by `dense_graph`.
"""

import json
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nanovllm.checkpoint import CONFIG_FILE, GENERATION_CONFIG_FILE
from nanovllm.errors import ConfigError, ModelError

__all__ = ["GENAI_CONFIG_FILE", "DecoderFacts", "DenseFolder", "find_dense_folder"]

GENAI_CONFIG_FILE = "genai_config.json"

Layout = Literal["onnxruntime-genai", "optimum", "onnx-community"]

_SUBFOLDER = "onnx"
_VARIANTS = ("", "_fp16", "_int8", "_uint8", "_quantized", "_q8", "_q4", "_q4f16", "_bnb4")  # most precise first
_GRAPH_FILES = tuple(
    f"{stem}{variant}.onnx" for stem in ("model", "decoder_model_merged", "decoder_model") for variant in _VARIANTS
)
_GENERATION_FIELDS = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens")
_OTHER_PARTS = ("encoder", "vision", "speech", "embedding")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderFacts:
    """What the configs say of a decoder. Sizes are None where they do not: the graph may know them."""

    model_type: str
    max_model_len: int
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    hidden_size: int | None = None
    num_heads: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    generation_defaults: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class DenseFolder:
    """A recognised folder. graph: the ONNX file to run."""

    folder: Path
    layout: Layout
    graph: Path

    def read_facts(self) -> DecoderFacts:
        """Raises `ModelError` naming the file and the key."""
        if self.layout == "onnxruntime-genai":
            return _genai_facts(self.folder / GENAI_CONFIG_FILE)
        return _hf_facts(self.folder)


def find_dense_folder(folder: Path, model_file: str | None = None) -> DenseFolder | None:
    """The decoder in `folder`; None where it is of none of the layouts.

    model_file: name of the ONNX file to run, in the folder or its subfolder onnx/; by default the one that
    genai_config.json names, else the most precise one there is. Raises `ModelError` for a folder that is of a known
    layout but cannot be run, `ConfigError` where model_file is not there.
    """
    if (folder / GENAI_CONFIG_FILE).is_file():
        named = _genai_graph(folder / GENAI_CONFIG_FILE)
        return DenseFolder(folder, "onnxruntime-genai", _find_file(folder, model_file) if model_file else named)
    if not (folder / CONFIG_FILE).is_file():
        return None
    graph = _find_file(folder, model_file) if model_file else _most_precise(folder)
    if graph is None:
        return None
    return DenseFolder(folder, "optimum" if graph.parent == folder else "onnx-community", graph)


def _most_precise(folder: Path) -> Path | None:
    files = (place / name for place in (folder, folder / _SUBFOLDER) for name in _GRAPH_FILES)
    return next((file for file in files if file.is_file()), None)


def _find_file(folder: Path, name: str) -> Path:
    places = (folder, folder / _SUBFOLDER)
    if Path(name).name == name:
        for place in places:
            if (place / name).is_file():
                return place / name
    there = sorted(str(file.relative_to(folder)) for place in places for file in place.glob("*.onnx"))
    raise ConfigError(
        f"model_file is {name!r}; {folder} and its subfolder {_SUBFOLDER} hold {', '.join(there) or 'no ONNX file'}. "
        "Give the name of one of them."
    )


def _genai_graph(path: Path) -> Path:
    model = _section(path, _read_json(path), "model")
    decoder = _section(path, model, "decoder")
    parts = [part for part in _OTHER_PARTS if part in model] + ["decoder.pipeline"] * ("pipeline" in decoder)
    if parts:
        raise ModelError(
            f"{path} describes a model of several graphs ({', '.join(parts)}); this backend runs text decoders of one."
        )
    file = decoder.get("filename")
    if not isinstance(file, str) or not (path.parent / file).is_file():
        raise ModelError(f"{path}: model.decoder.filename is {file!r}, which is no file beside it. Copy all files.")
    return path.parent / file


def _genai_facts(path: Path) -> DecoderFacts:
    """Format: onnxruntime-genai's documentation, "Config reference"."""
    document = _read_json(path)
    model = _section(path, document, "model")
    decoder = _section(path, model, "decoder")
    search = document.get("search")
    return DecoderFacts(
        model_type=str(model.get("type", "unknown")),
        max_model_len=_size(path, model, "context_length") or _no_length(path, "model.context_length"),
        eos_token_ids=_token_ids(path, model, "eos_token_id"),
        bos_token_id=_first(_token_ids(path, model, "bos_token_id")),
        pad_token_id=_first(_token_ids(path, model, "pad_token_id")),
        hidden_size=_size(path, decoder, "hidden_size"),
        num_heads=_size(path, decoder, "num_attention_heads"),
        num_kv_heads=_size(path, decoder, "num_key_value_heads"),
        head_dim=_size(path, decoder, "head_size"),
        generation_defaults=_generation_defaults(search if isinstance(search, dict) else {}),
    )


def _hf_facts(folder: Path) -> DecoderFacts:
    """Where config.json leaves out a size of the heads, transformers' default stands for it."""
    path, generation_path = folder / CONFIG_FILE, folder / GENERATION_CONFIG_FILE
    config = _read_json(path)
    generation = _read_json(generation_path) if generation_path.is_file() else {}

    def token_ids(key: str) -> tuple[int, ...]:
        """Of generation_config.json first: transformers stops by it."""
        return _token_ids(generation_path, generation, key) or _token_ids(path, config, key)

    hidden_size, num_heads = _size(path, config, "hidden_size"), _size(path, config, "num_attention_heads")
    lengths = (_size(path, config, key) for key in ("max_position_embeddings", "n_positions"))
    return DecoderFacts(
        model_type=str(config.get("model_type", "unknown")),
        max_model_len=next(filter(None, lengths), None) or _no_length(path, "max_position_embeddings"),
        eos_token_ids=token_ids("eos_token_id"),
        bos_token_id=_first(token_ids("bos_token_id")),
        pad_token_id=_first(token_ids("pad_token_id")),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=_size(path, config, "num_key_value_heads") or num_heads,
        head_dim=_size(path, config, "head_dim") or (hidden_size and num_heads and hidden_size // num_heads),
        generation_defaults=_generation_defaults(generation),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}. Copy or download it again.") from error
    if not isinstance(document, dict):
        raise ModelError(f"{path} holds a JSON {type(document).__name__}, not an object.")
    return document


def _section(path: Path, document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = document.get(key)
    if not isinstance(section, dict):
        raise ModelError(f"{path} has no object {key!r}. Export the model again.")
    return section


def _size(path: Path, document: Mapping[str, Any], key: str) -> int | None:
    value = document.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"{path}: {key} is {value!r}; it must be a positive integer.")
    return value


def _no_length(path: Path, key: str) -> int:
    raise ModelError(f"{path} has no {key}, so the longest length of the model is unknown. Add it to the file.")


def _token_ids(path: Path, document: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """An id, a list of them, or nothing: then ()."""
    value = document.get(key)
    ids = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise ModelError(f"{path}: {key} is {value!r}; it must be a token id or a list of them.")
    return ids


def _first(token_ids: Seq[int]) -> int | None:
    return token_ids[0] if token_ids else None


def _generation_defaults(document: Mapping[str, Any]) -> dict[str, Any]:
    return {key: document[key] for key in _GENERATION_FIELDS if document.get(key) is not None}
