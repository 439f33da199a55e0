"""Launches the RMS norm of rows or of parts of rows, with or without an addition before it."""

from typing import Any

import torch
from torch import Tensor

from backends.pytorch.triton_kernels.device_code import device_code
from backends.pytorch.triton_kernels.tiling import power_of_two_from

__all__ = ["add_rms_norm", "rms_norm"]

_PROGRAM_ELEMENTS = 1024  # of short groups, several of which a program takes
_WARP_ELEMENTS = 256  # 16 bytes of bfloat16 for each thread
_MOST_WARPS = 16


def rms_norm(x: Tensor, gain: Tensor, eps: float, *, groups: int = 1) -> Tensor:
    """x / sqrt(mean(x ** 2) + eps) * gain, the mean over each of `groups` equal parts of a row.

    x: (num_rows, features), float32, float16 or bfloat16; features adjacent, any distance between rows, so that it may
    be columns of a product. gain: float32 (features / groups,), contiguous. Returns a new tensor of x's shape and
    dtype, computed in float32. Raises `ConfigError` where Triton is not installed.
    """
    output = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(output, x, None, None, gain, eps, groups)
    return output


def add_rms_norm(a: Tensor, b: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """a + b, and `rms_norm` of that sum as it is rounded to the tensors' dtype. a, b: as x, of one shape and dtype."""
    assert (a.shape, a.dtype) == (b.shape, b.dtype), "one shape and dtype for both parts of a sum"
    total, output = (torch.empty(a.shape, dtype=a.dtype, device=a.device) for _ in range(2))
    _launch(output, a, b, total, gain, eps, groups=1)
    return total, output


def _launch(
    output: Tensor, x: Tensor, addend: Tensor | None, total: Tensor | None, gain: Tensor, eps: float, groups: int
) -> None:
    num_rows, features = x.shape[0], gain.shape[0]
    assert x.shape[1] == groups * features, "one gain for each feature of a group"
    assert x.stride(1) == 1, "features must be adjacent"
    assert addend is None or addend.stride(1) == 1, "features must be adjacent"
    if num_rows == 0:
        return
    width = power_of_two_from(features)
    part = min(power_of_two_from(groups), max(1, _PROGRAM_ELEMENTS // width))
    kernel: Any = device_code().rms_norm
    kernel[(num_rows, -(-groups // part))](
        output, x, addend, total, gain, x.stride(0), 0 if addend is None else addend.stride(0), float(eps),
        GROUPS=groups, FEATURES=features, PART=part, WIDTH=width, HAS_ADDEND=addend is not None,
        num_warps=max(1, min(_MOST_WARPS, part * width // _WARP_ELEMENTS)),
    )  # fmt: skip
