"""`PointwiseOps` with the Triton kernels: an RMS norm, the addition before one, a gated activation are a kernel each.

Layer norms and activations without a gate, which few families have, are torch's operators.
"""

from torch import Tensor

from backends.pytorch.fusion import Fuse, unfused
from backends.pytorch.pointwise import Function, NormedSum, activate, layer_norm
from backends.pytorch.triton_kernels import add_rms_norm, gate, rms_norm
from nanovllm.architectures import Activation

__all__ = ["TritonPointwise"]


class TritonPointwise:
    """fuse: of the chains that have no kernel here."""

    def __init__(self, fuse: Fuse = unfused) -> None:
        self._fuse = fuse

    def rms_norm(self, gain: Tensor, eps: float, groups: int) -> Function:
        return lambda x: rms_norm(x, gain, eps, groups=groups)

    def normed_sum(self, gain: Tensor, eps: float) -> NormedSum | None:
        return lambda a, b: add_rms_norm(a, b, gain, eps)

    def layer_norm(self, gain: Tensor, shift: Tensor | None, eps: float) -> Function:
        return self._fuse(layer_norm(gain, shift, eps))

    def activation(self, kind: Activation) -> Function:
        return self._fuse(lambda x: activate(x, kind))

    def gated(self, kind: Activation) -> Function:
        return lambda x, up: gate(x, up, kind)
