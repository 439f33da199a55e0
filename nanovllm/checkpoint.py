"""A Hugging Face checkpoint folder: config.json, generation_config.json and the weights, one file or several.

In: a folder. Out: dicts and lazily read tensors (`nanovllm.safetensors_file`). Knows no model family and no engine;
never holds more of the weights than a caller asks for. `resolve_model` (from `nanovllm.hub`) finds the folder.
"""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanovllm.errors import CheckpointError
from nanovllm.hub import MODEL_IN_THE_BOX, resolve_model
from nanovllm.safetensors_file import Tensor, read_header

__all__ = [
    "CONFIG_FILE",
    "GENERATION_CONFIG_FILE",
    "MODEL_IN_THE_BOX",
    "Checkpoint",
    "Tensor",
    "generation_defaults",
    "read_json_object",
    "resolve_model",
    "special_token_ids",
    "weight_files",
]

CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"
_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"


class Checkpoint:
    """An opened checkpoint folder. Only configs and headers are read up front; no file stays open.

    folder: as given. config: dict of config.json. generation_config: dict of generation_config.json, {} where absent.
    tensors: every tensor by name. Raises `CheckpointError` naming the file.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.config = read_json_object(self.folder / CONFIG_FILE)
        generation = self.folder / GENERATION_CONFIG_FILE
        self.generation_config = read_json_object(generation) if generation.exists() else {}
        self.tensors = _read_tensors(self.folder)

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """The tensor `name`. Raises `CheckpointError` where it is missing or its shape is not `shape`."""
        tensor = self.tensors.get(name)
        if tensor is None:
            near = difflib.get_close_matches(name, self.tensors, n=2, cutoff=0.5)
            hint = f" The nearest names are {', '.join(map(repr, near))}." if near else ""
            raise CheckpointError(
                f"{self.folder}: the weights have no tensor {name!r}, which config.json implies.{hint}"
            )
        if shape is not None and tensor.shape != shape:
            raise CheckpointError(
                f"{tensor.file}: tensor {name!r} has shape {tensor.shape}, but config.json implies {shape}."
            )
        return tensor


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, in order. Raises `CheckpointError` where there is none."""
    return sorted({folder / file for file in _weight_map(folder).values()} or {folder / _SINGLE_FILE})


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    weight_map = _weight_map(folder)
    if not weight_map:
        return read_header(folder / _SINGLE_FILE)
    headers = {file: read_header(folder / file) for file in set(weight_map.values())}
    for name, file in weight_map.items():
        if name not in headers[file]:
            raise CheckpointError(f"{folder / _INDEX_FILE} says that {name!r} is in {file}, but it is not there.")
    return {name: headers[file][name] for name, file in weight_map.items()}


def _weight_map(folder: Path) -> Mapping[str, str]:
    """Shard file by tensor name; empty where the weights are the one file model.safetensors."""
    if (folder / _SINGLE_FILE).is_file():
        return {}
    if not (folder / _INDEX_FILE).is_file():
        raise CheckpointError(_no_weights(folder))
    weight_map = read_json_object(folder / _INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / _INDEX_FILE} has no weight_map. Download or copy the file again.")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file or Path(file).name != file:
            raise CheckpointError(f"{folder / _INDEX_FILE}: {name!r} lies in {file!r}, which is no file name.")
        if not (folder / file).is_file():
            raise CheckpointError(f"{folder}: {file} is missing, which {_INDEX_FILE} names. Download it again.")
    return weight_map


def _no_weights(folder: Path) -> str:
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
        return (
            f"{folder} holds its weights in PyTorch's pickle format (.bin), which can run code when it is loaded and "
            "is not read. Convert it with transformers: AutoModelForCausalLM.from_pretrained(folder)"
            ".save_pretrained(new_folder, safe_serialization=True)."
        )
    return f"{folder} has neither {_SINGLE_FILE} nor {_INDEX_FILE}. Give a folder that holds a checkpoint."


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `CheckpointError`."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist. Give a folder that holds a checkpoint.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} holds a JSON {type(document).__name__}, not an object.")
    return document


_GENERATION_FIELDS = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens")


def generation_defaults(checkpoint: Checkpoint) -> dict[str, Any]:
    """What generation_config.json says of sampling, for `ModelInfo.generation_defaults`."""
    given = checkpoint.generation_config
    return {key: given[key] for key in _GENERATION_FIELDS if given.get(key) is not None}


def special_token_ids(checkpoint: Checkpoint, key: str) -> tuple[int, ...]:
    """The ids under `key`, of generation_config.json first, then of config.json: transformers stops by the former.

    Raises `CheckpointError` where they are none."""
    sources: tuple[Mapping[str, Any], ...] = (checkpoint.generation_config, checkpoint.config)
    value = next((source[key] for source in sources if source.get(key) is not None), ())
    ids = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise CheckpointError(f"{checkpoint.folder}: {key} is {value!r}; it must be a token id or a list of them.")
    return ids
