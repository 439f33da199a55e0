"""Options of this backend: `EngineConfig.backend_options`, checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nanovllm.config import check_keys
from nanovllm.errors import ConfigError

__all__ = ["OrtOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OrtOptions:
    """intra_op_spinning: whether idle compute threads wait actively for a while: quicker steps, more CPU time.
    model_file: name of the ONNX file to run, in a folder that another tool exported, where it holds several."""

    intra_op_spinning: bool = True
    model_file: str | None = None

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "OrtOptions":
        """Raises `ConfigError` for an unknown key or a value of the wrong type."""
        check_keys(options, cls, of="backend 'onnxruntime'")
        for key, value in options.items():
            kind, said = (str, "a file's name") if key == "model_file" else (bool, "True or False")
            if not isinstance(value, kind):
                raise ConfigError(f"option {key!r} of backend 'onnxruntime' is {value!r}; it must be {said}.")
        return cls(**options)
