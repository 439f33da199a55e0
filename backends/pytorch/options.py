"""Options of this backend: `EngineConfig.backend_options`, checked."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from nanovllm.errors import ConfigError

__all__ = ["TorchOptions"]

_ALLOWED: Mapping[str, tuple[str | None, ...]] = {
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "device": ("auto", "cpu"),
    "quantization": (None, "int8", "int4"),
    "collective": ("auto", "shared_memory", "gloo"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchOptions:
    """dtype: of arithmetic, weights and KV cache; "auto": the checkpoint's, where the processor is quick in it.
    device: where the model runs. quantization: format of the weights of linear layers, None: that of `dtype`.
    collective: through what several processes add up their parts; "auto": shared memory, which is quicker."""

    dtype: str = "auto"
    device: str = "auto"
    quantization: str | None = None
    collective: str = "auto"

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "TorchOptions":
        """Raises `ConfigError` for an unknown key or value."""
        known = [field.name for field in fields(cls)]
        for key, value in options.items():
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
                raise ConfigError(f"unknown option {key!r} of backend 'torch'. {hint}")
            if value not in _ALLOWED[key]:
                allowed = ", ".join(map(repr, _ALLOWED[key]))
                raise ConfigError(f"option {key!r} of backend 'torch' is {value!r}; allowed: {allowed}.")
        return cls(**options)
