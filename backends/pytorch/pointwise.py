"""The border between a model and what a device computes between its products: norms and activations, row by row.

In: the gains of a norm, the kind of an activation. Out: functions of (rows, features) tensors of the model's dtype,
which compute in float32 and leave their inputs as they are. `CPUPointwise` is our CPU norm and torch; devices bring
theirs.
"""

from collections.abc import Callable
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from backends.pytorch.cpu_norm import CPURMSNorm
from backends.pytorch.fusion import Fuse, unfused
from nanovllm.architectures import Activation

__all__ = ["CPUPointwise", "Function", "NormedSum", "PointwiseOps", "activate", "layer_norm"]

Function = Callable[..., Tensor]
NormedSum = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(a, b) -> (a + b, norm(a + b)), the sum rounded to the model's dtype before it is normed."""


class PointwiseOps(Protocol):
    """Makes the functions of a program. gain, shift: float32, of a norm; `Ops` says what each function is."""

    def rms_norm(self, gain: Tensor, eps: float, groups: int) -> Function:
        """gain: (features / groups,), the weight and its offset. The function's input may be columns of a product."""

    def normed_sum(self, gain: Tensor, eps: float) -> NormedSum | None:
        """The addition before a norm and the norm at once; None where that gains nothing. gain: (features,)."""

    def layer_norm(self, gain: Tensor, shift: Tensor | None, eps: float) -> Function: ...

    def activation(self, kind: Activation) -> Function: ...

    def gated(self, kind: Activation) -> Function:
        """(gate, up) -> kind(gate) * up, where kind(gate) is rounded to the model's dtype first."""


class CPUPointwise:
    """fuse: of the chains of operations that torch has no operator for."""

    def __init__(self, fuse: Fuse = unfused) -> None:
        self._fuse = fuse

    def rms_norm(self, gain: Tensor, eps: float, groups: int) -> Function:
        return CPURMSNorm(gain, eps, groups)

    def normed_sum(self, gain: Tensor, eps: float) -> NormedSum | None:
        return None

    def layer_norm(self, gain: Tensor, shift: Tensor | None, eps: float) -> Function:
        return self._fuse(layer_norm(gain, shift, eps))

    def activation(self, kind: Activation) -> Function:
        return self._fuse(lambda x: activate(x, kind))

    def gated(self, kind: Activation) -> Function:
        return self._fuse(lambda gate, up: activate(gate, kind).mul_(up))


def activate(x: Tensor, kind: Activation) -> Tensor:
    """`kind` element by element; a new tensor."""
    if kind == "silu":
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")


def layer_norm(gain: Tensor, shift: Tensor | None, eps: float) -> Function:
    """torch's, in float32."""
    return lambda x: F.layer_norm(x.float(), gain.shape, gain, shift, eps).to(x.dtype)
