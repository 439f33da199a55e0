"""Linear layers with weights in int8 or int4, quantized while a checkpoint is loaded.

In: a weight and a bias. Out: `LinearLayer`s. They stand on operators of torch without a public name, so each layer has
a fallback in plain ones.

int8: one scale an output feature; the activations are rounded to int8 as well, by row, so that a result does not depend
on what else is in the batch, and the sums are exact (the same arithmetic as the int8 exports). Chosen by measurement on
two Zen 4 cores: `_int_mm` reached 548 GOP/s at 48 rows, products in bf16 321, `_weight_int8pack_mm`, which leaves the
activations as they are, 109. int4: groups of input features have a scale and a zero point each; the activations stay.
The head, in which small errors show most, is int8 there.
"""

import torch
from torch import Tensor

from backends.pytorch.linear import LinearLayer
from nanovllm.architectures import Shard

__all__ = ["Int4Linear", "Int8Linear", "make_int4_linear", "make_int8_linear"]

_GROUP_SIZES = (128, 64, 32)  # of those that the int4 product takes, the best for speed first
_ROWS_AT_ONCE = 4096  # of a weight while it is quantized, so that no large float32 copy is made
_SMALLEST_SCALE = 1e-12  # of a row of zeros


def make_int8_linear(weight: Tensor, bias: Tensor | None, shard: Shard) -> LinearLayer:
    """See `MakeLinear`."""
    return Int8Linear(weight, bias)


def make_int4_linear(weight: Tensor, bias: Tensor | None, shard: Shard) -> LinearLayer:
    """See `MakeLinear`. int8 for the head, and where the features do not come in groups that the product takes."""
    out_features, in_features = weight.shape
    group_size = next((size for size in _GROUP_SIZES if in_features % size == 0), None)
    if shard == "vocab" or group_size is None or out_features % 16:
        return Int8Linear(weight, bias)
    return Int4Linear(weight, bias, group_size)


class Int8Linear:
    """weight: (out_features, in_features), of a floating dtype; not kept."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._bias = bias
        parts = [_quantize_rows(part.float()) for part in torch.split(weight, _ROWS_AT_ONCE)]
        self._weight = torch.cat([q for q, _ in parts])
        self._scales = torch.cat([scale for _, scale in parts]).view(-1)  # (out_features,)

    def __call__(self, x: Tensor) -> Tensor:
        if not len(x):
            return x.new_empty(0, len(self._weight))
        rows, row_scales = _quantize_rows(x.float())
        y = (_int_product(rows, self._weight) * row_scales).mul_(self._scales)
        return (y if self._bias is None else y.add_(self._bias)).to(x.dtype)


def _quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each row of x as int8 in -127 .. 127, and its scale, float32 (rows, 1)."""
    scale = (x.abs().amax(1, keepdim=True) / 127).clamp_(min=_SMALLEST_SCALE)
    return (x / scale).round_().to(torch.int8), scale


def _int_product(rows: Tensor, weight: Tensor) -> Tensor:
    """rows @ weight.T of int8 values: exact sums, which float32 may round."""
    try:
        return torch._int_mm(rows, weight.t())
    except RuntimeError:  # a build without oneDNN; float64 holds these sums exactly
        return (rows.double() @ weight.t().double()).float()


class Int4Linear:
    """weight: (out_features, in_features), of the dtype of the activations; not kept. in_features is a multiple of
    group_size, out_features one of 16."""

    def __init__(self, weight: Tensor, bias: Tensor | None, group_size: int) -> None:
        self._bias = bias
        self._group_size = group_size
        self._shape = weight.shape
        parts = [_quantize_groups(part.float(), group_size) for part in torch.split(weight, _ROWS_AT_ONCE)]
        values = torch.cat([q for q, _ in parts])  # (out_features, in_features), 0 .. 15
        self._scales = torch.cat([scales for _, scales in parts], 1).to(weight.dtype).contiguous()
        try:
            self._packed: Tensor | None = torch._convert_weight_to_int4pack_for_cpu(values.int(), 1)
            self._values = values[:0]
        except (RuntimeError, AttributeError):  # a build without the operator
            self._packed, self._values = None, values

    def __call__(self, x: Tensor) -> Tensor:
        if not len(x):
            return x.new_empty(0, self._shape[0])
        if self._packed is None:
            y = x @ self._dequantized().t()
        else:
            y = torch._weight_int4pack_mm_for_cpu(x.contiguous(), self._packed, self._group_size, self._scales)
        return y if self._bias is None else y.add_(self._bias)

    def _dequantized(self) -> Tensor:
        scale, zero = self._scales.unbind(-1)  # (groups, out_features)
        groups = (self._values - 8).to(scale.dtype).view(self._shape[0], -1, self._group_size)
        return (groups * scale.t()[:, :, None] + zero.t()[:, :, None]).flatten(1)


def _quantize_groups(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Values, int8 (rows, features) in 0 .. 15, and (groups, rows, 2): scale s and zero point z of (value - 8) * s + z,
    the format of `_weight_int4pack_mm_for_cpu`."""
    groups = weight.view(len(weight), -1, group_size)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = ((high - low) / 15).clamp_(min=_SMALLEST_SCALE)
    values = ((groups - low) / scale).round_().clamp_(0, 15).to(torch.int8)
    return values.flatten(1), torch.cat((scale, low + 8 * scale), -1).transpose(0, 1)
