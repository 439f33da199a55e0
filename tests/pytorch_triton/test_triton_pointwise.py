"""The kernels between products: norms, the additions before them, and gated activations, against float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from triton_cases import SEEDS

from backends.pytorch.pointwise import CPUPointwise
from backends.pytorch.triton_kernels import add_rms_norm, gate, rms_norm
from nanovllm.architectures import Activation

DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
KINDS = st.sampled_from(["silu", "gelu", "gelu_tanh"])
ROWS = st.integers(0, 4)
FEATURES = st.sampled_from([8, 64, 128]) | st.integers(1, 90)
EPS = st.sampled_from([1e-6, 0.5])


def columns(rows: int, features: int, count: int, dtype: torch.dtype, seed: int, device: torch.device) -> list[Tensor]:
    """`count` tensors of (rows, features) that are columns of one product, large and small numbers among them."""
    generator = torch.Generator().manual_seed(seed)
    merged = torch.randn(rows, count * features, generator=generator) * 3
    return list(merged.to(device, dtype).split(features, 1))


def normed(x: Tensor, gain: Tensor, eps: float, groups: int) -> Tensor:
    """In float64."""
    parts = x.cpu().double().reshape(len(x), groups, len(gain))
    parts = parts / (parts.square().mean(-1, keepdim=True) + eps).sqrt() * gain.cpu().double()
    return parts.reshape(x.shape)


def activated(x: Tensor, kind: Activation) -> Tensor:
    """In float64."""
    x = x.cpu().double()
    if kind == "silu":
        return x * x.sigmoid()
    if kind == "gelu":
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2
    return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 in `dtype`, as the kernels' machine rounds: Triton's interpreter cuts bfloat16 off."""
    if x.device.type == "cpu" and dtype == torch.bfloat16:
        return (x.view(torch.int32) & -(2**16)).view(torch.float32).bfloat16()
    return x.to(dtype)


def assert_rounded_once(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    """Within half a unit of the last place of `dtype`, or a whole one where it is cut off; float32 a little more."""
    assert found.dtype == dtype
    is_cut = found.device.type == "cpu" and dtype == torch.bfloat16
    unit = torch.finfo(dtype).eps
    tolerance = 2e-6 if dtype == torch.float32 else 1.01 * unit if is_cut else 0.505 * unit
    torch.testing.assert_close(found.cpu().double(), wanted, rtol=tolerance, atol=1e-6)


@given(rows=ROWS, features=FEATURES, groups=st.integers(1, 20), dtype=DTYPES, eps=EPS, seed=SEEDS)
@settings(max_examples=40)
def test_a_norm_is_float64s_rounded_once_and_leaves_its_input(
    rows: int, features: int, groups: int, dtype: torch.dtype, eps: float, seed: int, interpreted_or_cuda: torch.device
) -> None:
    _, x = columns(rows, groups * features, 2, dtype, seed, interpreted_or_cuda)
    gain = torch.rand(features, device=interpreted_or_cuda) + 0.5
    before = x.clone()
    found = rms_norm(x, gain, eps, groups=groups)
    assert found.is_contiguous()
    assert_rounded_once(found, normed(x, gain, eps, groups), dtype)
    assert torch.equal(x, before)


@given(rows=ROWS, features=FEATURES, dtype=DTYPES, eps=EPS, seed=SEEDS)
@settings(max_examples=40)
def test_a_sum_is_rounded_before_it_is_normed(
    rows: int, features: int, dtype: torch.dtype, eps: float, seed: int, interpreted_or_cuda: torch.device
) -> None:
    a, b = columns(rows, features, 2, dtype, seed, interpreted_or_cuda)
    gain = torch.rand(features, device=interpreted_or_cuda) + 0.5
    total, found = add_rms_norm(a, b, gain, eps)
    assert torch.equal(total, rounded(a.float() + b.float(), dtype))
    assert torch.equal(found, rms_norm(total, gain, eps))


@given(rows=ROWS, features=st.integers(1, 2100), kind=KINDS, dtype=DTYPES, seed=SEEDS)
@settings(max_examples=40)
def test_a_gated_activation_is_rounded_before_and_after_the_product(
    rows: int, features: int, kind: Activation, dtype: torch.dtype, seed: int, interpreted_or_cuda: torch.device
) -> None:
    x, up = columns(rows, features, 2, dtype, seed, interpreted_or_cuda)
    before = x.clone(), up.clone()
    found, ones = gate(x, up, kind), gate(x, torch.ones_like(up), kind)
    assert_rounded_once(ones, activated(x, kind), dtype)
    # the interpreter gets the last places of numbers below the normal ones wrong
    torch.testing.assert_close(found, rounded(ones.float() * up.float(), dtype), rtol=0, atol=1e-37)
    assert torch.equal(x, before[0])
    assert torch.equal(up, before[1])


@given(rows=ROWS, kind=KINDS, dtype=DTYPES, seed=SEEDS)
@settings(max_examples=15)
def test_norms_and_gates_are_those_of_the_cpu_but_for_the_last_place(
    rows: int, kind: Activation, dtype: torch.dtype, seed: int, interpreted_or_cuda: torch.device
) -> None:
    x, up = columns(rows, 96, 2, dtype, seed, interpreted_or_cuda)
    gain = torch.rand(32, device=interpreted_or_cuda) + 0.5
    pairs = [
        (rms_norm(x, gain, 1e-6, groups=3), CPUPointwise().rms_norm(gain.cpu(), 1e-6, 3)(x.cpu())),
        (gate(x, up, kind), CPUPointwise().gated(kind)(x.cpu(), up.cpu())),
    ]
    for found, wanted in pairs:
        # One unit of the last place, of the activation and then of the product; 1 + erf(x) cancels where x < 0.
        torch.testing.assert_close(found.cpu(), wanted, rtol=2.1 * torch.finfo(dtype).eps, atol=2e-5)


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh"])
def test_the_ends_of_the_numbers_overflow_nowhere(kind: Activation, interpreted_or_cuda: torch.device) -> None:
    x = torch.tensor([[-3e4, -200.0, 0.0, 200.0, 3e4]], device=interpreted_or_cuda)
    assert torch.equal(gate(x, torch.ones_like(x), kind).abs(), x.clamp(min=0))
