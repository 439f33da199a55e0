"""Rotary position embedding in torch: the tables of a step, and the rotation of heads by them."""

from typing import NamedTuple

import torch
from torch import Tensor

from nanovllm.architectures import Rope

__all__ = ["Rotation", "rotate", "rotation"]


class Rotation(NamedTuple):
    """cos, sin: float32 (num_tokens, 1, dim), of each feature's pair and times the magnitude; sin is negative for the
    first feature of a pair. interleaved: as in `Rope`."""

    cos: Tensor
    sin: Tensor
    interleaved: bool


def rotation(rope: Rope, positions: Tensor) -> Rotation:
    """The rotation of tokens at `positions`, (num_tokens,). The angles are float32, as where models are trained."""
    frequencies = torch.tensor(rope.inverse_frequencies(), dtype=torch.float32, device=positions.device)
    angles = (positions.to(torch.float32)[:, None] * frequencies)[:, None]  # (num_tokens, 1, dim / 2)
    cos, sin = angles.cos() * rope.magnitude, angles.sin() * rope.magnitude
    return Rotation(_pairs(cos, cos, rope.interleaved), _pairs(-sin, sin, rope.interleaved), rope.interleaved)


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """x: (num_tokens, heads, head_dim); its first dim features are turned, in float32. A new tensor of x's dtype."""
    dim = by.cos.shape[-1]
    part = x[..., :dim]
    turned = (part * by.cos).addcmul_(_partners(part, by.interleaved), by.sin)
    return (turned if dim == x.shape[-1] else torch.cat((turned, x[..., dim:].float()), -1)).to(x.dtype)


def _pairs(first: Tensor, second: Tensor, interleaved: bool) -> Tensor:
    """What belongs to the first and to the second features of the pairs, in the order of the features."""
    return torch.stack((first, second), -1).flatten(-2) if interleaved else torch.cat((first, second), -1)


def _partners(x: Tensor, interleaved: bool) -> Tensor:
    """The other feature of each feature's pair."""
    if interleaved:
        return x.reshape(*x.shape[:-1], -1, 2).flip(-1).flatten(-2)
    return x.roll(x.shape[-1] // 2, -1)
