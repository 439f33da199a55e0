"""The kernels themselves, imported when they are first wanted.

The modules whose names end in `_kernel` import Triton when they are imported; everything else here reaches them through
this function, so that a machine without Triton can import the package.
"""

from functools import cache
from typing import Any, NamedTuple

from nanovllm.errors import ConfigError

__all__ = ["DeviceCode", "device_code", "is_launch_error"]


class DeviceCode(NamedTuple):
    """Triton functions, launched as `kernel[grid](...)`."""

    attend: Any
    gate: Any
    pick_tokens: Any
    reduce_splits: Any
    rms_norm: Any
    rotate_and_store: Any
    sum_chunks: Any


@cache  # a step asks for it with every launch
def device_code() -> DeviceCode:
    """The kernels. Raises `ConfigError` where Triton is not installed."""
    try:
        from backends.pytorch.triton_kernels.attention_kernel import attend
        from backends.pytorch.triton_kernels.gate_kernel import gate
        from backends.pytorch.triton_kernels.kv_store_kernel import rotate_and_store
        from backends.pytorch.triton_kernels.norm_kernel import rms_norm
        from backends.pytorch.triton_kernels.reduce_kernel import reduce_splits
        from backends.pytorch.triton_kernels.sampling_kernel import pick_tokens, sum_chunks
    except ImportError as error:
        raise ConfigError(
            f"the torch backend's CUDA kernels cannot be loaded: {error}. They need the package triton, which "
            "PyTorch's CUDA builds for Linux bring along: pip install triton, or run on the CPU (device='cpu')."
        ) from error
    return DeviceCode(attend, gate, pick_tokens, reduce_splits, rms_norm, rotate_and_store, sum_chunks)


def is_launch_error(error: Exception) -> bool:
    """Whether Triton raised it, such as where a kernel does not compile for the device or takes more than it has."""
    return any(kind.__module__.partition(".")[0] == "triton" for kind in type(error).__mro__)
