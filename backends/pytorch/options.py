"""Options of this backend: `EngineConfig.backend_options`, checked."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nanovllm.config import check_keys
from nanovllm.errors import ConfigError

__all__ = ["TorchOptions"]

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchOptions:
    """dtype: of arithmetic, weights and KV cache; "auto": the checkpoint's, where the processor is quick in it.
    device: where the model runs; "auto": the first CUDA device, where there is one. quantization: format of the weights
    of linear layers, None: that of `dtype`. collective: through what several processes add up their parts; "auto":
    shared memory on CPUs, which is quicker than gloo, and nccl on CUDA devices. enforce_eager: no CUDA graphs.
    torch_compile: layer norms and activations are compiled, as far as the device has no kernels for them.
    gpu_memory_utilization: share of a CUDA device's memory that weights, activations and KV cache may take together;
    None: 0.9."""

    dtype: str = "auto"
    device: str = "auto"
    quantization: str | None = None
    collective: str = "auto"
    enforce_eager: bool = False
    torch_compile: bool = False
    gpu_memory_utilization: float | None = None

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "TorchOptions":
        """Raises `ConfigError` for an unknown key or value."""
        check_keys(options, cls, of="backend 'torch'")
        for key, value in options.items():
            allowed, is_allowed = _RULES[key]
            if not is_allowed(value):
                raise ConfigError(f"option {key!r} of backend 'torch' is {value!r}; allowed: {allowed}.")
        return cls(**options)


_Rule = tuple[str, Callable[[Any], bool]]
"""What is allowed, in words, and whether a value is."""


def _one_of(*values: str | None) -> _Rule:
    return ", ".join(
        map(repr, values)
    ), lambda value: value in values if isinstance(value, str) else None in values and value is None


def _is_device(value: Any) -> bool:
    return isinstance(value, str) and _DEVICE.fullmatch(value) is not None


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_share(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1)


_RULES: Mapping[str, _Rule] = {
    "dtype": _one_of("auto", "float32", "bfloat16", "float16"),
    "device": ("'auto', 'cpu', 'cuda', 'cuda:0' and so on", _is_device),
    "quantization": _one_of(None, "int8", "int4"),
    "collective": _one_of("auto", "shared_memory", "gloo", "nccl"),
    "enforce_eager": ("True, False", _is_bool),
    "torch_compile": ("True, False", _is_bool),
    "gpu_memory_utilization": ("a number above 0 and up to 1", _is_share),
}
