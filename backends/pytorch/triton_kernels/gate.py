"""Launches the gated activation of an MLP."""

from typing import Any

import torch
from torch import Tensor

from backends.pytorch.triton_kernels.device_code import device_code
from backends.pytorch.triton_kernels.tiling import power_of_two_from
from nanovllm.architectures import Activation

__all__ = ["gate"]

_PROGRAM_ELEMENTS = 1024  # 16 bytes of bfloat16 for each of four warps' threads


def gate(x: Tensor, up: Tensor, kind: Activation) -> Tensor:
    """kind(x) * up, element by element; kind(x) is rounded to the tensors' dtype before it is multiplied.

    x, up: (num_rows, features), of one dtype: float32, float16 or bfloat16; features adjacent, any distance between
    rows, so that both may be columns of one product. Returns a new tensor of that shape and dtype. Raises `ConfigError`
    where Triton is not installed.
    """
    assert (x.shape, x.dtype) == (up.shape, up.dtype), "one shape and dtype for gate and up"
    assert x.stride(1) == up.stride(1) == 1, "features must be adjacent"
    num_rows, features = x.shape
    output = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if num_rows == 0:
        return output
    width = min(_PROGRAM_ELEMENTS, power_of_two_from(features))
    kernel: Any = device_code().gate
    kernel[(num_rows, -(-features // width))](
        output, x, up, x.stride(0), up.stride(0), FEATURES=features, WIDTH=width, KIND=kind, num_warps=4
    )
    return output
