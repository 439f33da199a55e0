"""Chains of point-wise operations as one kernel each, where torch.compile is wanted.

In: a function of tensors. Out: a function of the same values. Matrix products, attention and whatever a device has
a kernel for stay as they are. Compiling takes a C++ compiler or Triton, and seconds for each kind of function.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Fuse", "Pointwise", "compiled", "unfused"]

Pointwise = Callable[..., Tensor]
Fuse = Callable[[Pointwise], Pointwise]


def unfused(function: Pointwise) -> Pointwise:
    """The function as it is."""
    return function


def compiled(function: Pointwise) -> Pointwise:
    """The function by torch.compile, for any number of rows. It is compiled when it is first called."""
    fused: Pointwise = torch.compile(function, dynamic=True)
    return fused
