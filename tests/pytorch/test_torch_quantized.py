"""Quantized layers are the layers that they stand for, up to the rounding that their formats imply."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_driver import load_runner

from backends.pytorch.quantized import Int4Linear, Int8Linear, make_int4_linear
from nanovllm.testing import ReferenceModel, teacher_forced_logits, tiny_config, write_checkpoint

SEEDS = st.integers(0, 999)
ROWS = st.sampled_from([0, 1, 3, 48])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])


def draw(seed: int, rows: int, features: int, outputs: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """x, weight and bias."""
    random = torch.Generator().manual_seed(seed)
    shapes = ((rows, features), (outputs, features), (outputs,))
    x, weight, bias = (torch.randn(shape, generator=random).to(dtype) for shape in shapes)
    return x, weight, bias


@given(SEEDS, ROWS, DTYPES, st.booleans())
def test_int8_is_the_product_of_the_rounded_rows(seed: int, rows: int, dtype: torch.dtype, with_bias: bool) -> None:
    x, weight, bias = draw(seed, rows, 96, 40, dtype)
    y = Int8Linear(weight, bias if with_bias else None)(x)
    expected = rounded(x) @ rounded(weight).T + (bias.double() if with_bias else 0)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, atol=1e-4, rtol=2**-7 if dtype == torch.bfloat16 else 1e-5)


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Each row in steps of its largest magnitude / 127."""
    step = x.float().abs().amax(1, keepdim=True) / 127
    return (x.float() / step).round().double() * step.double()


@given(SEEDS, DTYPES)
def test_an_int8_row_does_not_depend_on_the_rows_beside_it(seed: int, dtype: torch.dtype) -> None:
    x, weight, bias = draw(seed, 20, 96, 40, dtype)
    layer = Int8Linear(weight, bias)
    together = layer(x)
    for i in (0, 7, 19):
        assert torch.equal(layer(x[i : i + 1])[0], together[i])


@given(SEEDS, ROWS, DTYPES, st.sampled_from([32, 64, 128]))
def test_int4_errs_by_half_a_step_of_a_weight_at_most(
    seed: int, rows: int, dtype: torch.dtype, group_size: int
) -> None:
    x, weight, bias = draw(seed, rows, 256, 48, dtype)
    y = Int4Linear(weight, bias, group_size)(x)
    groups = weight.double().view(48, 256 // group_size, group_size)
    half_step = (groups.amax(-1) - groups.amin(-1)) / 30
    bound = x.double().abs().view(rows, 256 // group_size, group_size).sum(-1) @ half_step.T
    error = (y.double() - (x.double() @ weight.double().T + bias.double())).abs()
    slack = 0.05 if dtype == torch.bfloat16 else 1e-5
    assert bool((error <= bound * (1 + slack) + slack * y.double().abs() + slack).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_the_operators_of_torch_the_fallbacks_give_the_same(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, bias = draw(0, 5, 128, 32, dtype)
    int8, int4 = Int8Linear(weight, bias)(x), Int4Linear(weight, bias, 64)(x)

    def missing(*_: object) -> None:
        raise RuntimeError("not built in")

    monkeypatch.setattr(torch, "_int_mm", missing)
    monkeypatch.setattr(torch, "_convert_weight_to_int4pack_for_cpu", missing)
    assert torch.equal(Int8Linear(weight, bias)(x), int8)
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(Int4Linear(weight, bias, 64)(x), int4, atol=tolerance, rtol=tolerance)


def test_rows_of_zeros_stay_zeros() -> None:
    zeros = torch.zeros(16, 32)
    for layer in (Int8Linear(zeros, None), Int4Linear(zeros, None, 32)):
        assert torch.equal(layer(torch.ones(2, 32)), torch.zeros(2, 16))
    assert torch.equal(Int8Linear(torch.ones(16, 32), None)(torch.zeros(2, 32)), torch.zeros(2, 16))


def test_int4_takes_int8_for_the_head_and_for_shapes_that_have_no_groups() -> None:
    assert isinstance(make_int4_linear(torch.ones(32, 128), None, "column"), Int4Linear)
    assert isinstance(make_int4_linear(torch.ones(32, 128), None, "vocab"), Int8Linear)
    assert isinstance(make_int4_linear(torch.ones(32, 80), None, "row"), Int8Linear)
    assert isinstance(make_int4_linear(torch.ones(30, 128), None, "row"), Int8Linear)


@pytest.mark.parametrize(("quantization", "tolerance"), [("int8", 0.15), ("int4", 0.6)])
def test_a_quantized_model_stays_near_the_oracle(tmp_path: Path, quantization: str, tolerance: float) -> None:
    folder = write_checkpoint(tmp_path / "model", tiny_config(hidden_size=64, intermediate_size=96))
    tokens = np.random.default_rng(3).integers(0, 211, 40).tolist()
    runner = load_runner(folder, quantization=quantization)
    logits, expected = teacher_forced_logits(runner, tokens), ReferenceModel(folder).logits(tokens)
    assert runner.model_info.quantization == {"format": quantization}
    runner.close()
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert 1e-4 < error < tolerance
