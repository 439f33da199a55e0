"""Small random checkpoints for tests, written without torch: any config of a supported family, one file or shards."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nanovllm.architectures import Decoder, Weight, decoder_from_config

__all__ = ["tiny_config", "weights_of", "write_checkpoint"]

_DTYPE_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def tiny_config(**changes: Any) -> dict[str, Any]:
    """config.json of a small Qwen2 whose heads do not add up to its hidden size; `changes` replace fields of it."""
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": 211,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
        **changes,
    }


def write_checkpoint(
    folder: Path,
    config: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    dtype: str = "bfloat16",
    num_shards: int = 1,
    decoder: Decoder | None = None,
) -> Path:
    """Writes config.json and random safetensors into `folder`, which is made, and returns it.

    config: by default `tiny_config()`. dtype: of the weights, float32, float16 or bfloat16. decoder: whose weights to
    write, where it is not what `config` says. The weights are large enough that the most likely token is clearly so
    nearly everywhere.
    """
    config = tiny_config() if config is None else config
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = weights_of(decoder or decoder_from_config(config))
    if num_shards == 1:
        _write_safetensors(folder / "model.safetensors", weights, seed, dtype)
        return folder
    weight_map = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        part = weights[shard::num_shards]
        _write_safetensors(folder / file, part, seed + shard, dtype)
        weight_map.update({weight.name: file for weight in part})
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def weights_of(decoder: Decoder) -> list[Weight]:
    """Every tensor of the checkpoint that the decoder uses, whole and as it lies there, in the order of use."""
    recorder: Any = _Recorder()
    decoder.logits(recorder)
    return [Weight(weight.name, weight.stored_shape) for weight in recorder.weights.values()]


def _write_safetensors(path: Path, weights: Sequence[Weight], seed: int, dtype: str) -> None:
    """The format is described in `nanovllm.safetensors_file`."""
    import ml_dtypes

    numpy_dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    random = np.random.default_rng(seed)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts, position = [], 0
    for weight in weights:
        spread = 0.3 if len(weight.shape) == 1 else 1.5 * weight.shape[-1] ** -0.5
        values = random.normal(1.0 if "norm" in weight.name else 0.0, spread, weight.shape).astype(numpy_dtype)
        data = values.tobytes()
        header[weight.name] = {
            "dtype": _DTYPE_NAMES[dtype],
            "shape": list(weight.shape),
            "data_offsets": [position, position + len(data)],
        }
        parts.append(data)
        position += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(b"".join([len(text).to_bytes(8, "little"), text, *parts]))


class _Recorder:
    """`Ops` that computes nothing and notes the weights among the arguments of any operation."""

    def __init__(self) -> None:
        self.weights: dict[str, Weight] = {}

    def __getattr__(self, operation: str) -> Any:
        def note(*arguments: Any, **options: Any) -> Any:
            self._note([*arguments, *options.values()])
            return (None,) * len(arguments[1]) if operation == "linear" else None

        return note

    def _note(self, value: Any) -> None:
        if isinstance(value, Weight):
            self.weights[value.name] = value
        elif isinstance(value, list | tuple):
            for item in value:
                self._note(item)
        elif is_dataclass(value):
            self._note([getattr(value, field.name) for field in fields(value)])
