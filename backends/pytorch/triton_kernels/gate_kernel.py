"""The gated activation of an MLP in Triton. Device code; `gate.py` launches it.

Programs (row, part): each WIDTH features of a row. Arithmetic is float32; the activation is rounded before it is
multiplied, as where it is an operator of its own.
"""

# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator"

import triton
import triton.language as tl

__all__ = ["gate"]

_SQRT_HALF: tl.constexpr = tl.constexpr(0.7071067811865476)
_TWICE_SQRT_2_BY_PI: tl.constexpr = tl.constexpr(1.5957691216057308)


@triton.jit
def gate(
    output: tl.tensor,  # (num_rows, FEATURES)
    x: tl.tensor,  # (num_rows, FEATURES)
    up: tl.tensor,  # (num_rows, FEATURES)
    x_stride: tl.tensor,
    up_stride: tl.tensor,
    FEATURES: tl.constexpr,
    WIDTH: tl.constexpr,
    KIND: tl.constexpr,  # an `Activation`
) -> None:
    row = tl.program_id(0).to(tl.int64)
    feature = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    is_element = feature < FEATURES
    values = tl.load(x + row * x_stride + feature, mask=is_element, other=0.0).to(tl.float32)
    factors = tl.load(up + row * up_stride + feature, mask=is_element, other=0.0).to(tl.float32)
    if KIND == "silu":
        activated = values * _sigmoid(values)
    elif KIND == "gelu":
        activated = values * (1 + tl.erf(values * _SQRT_HALF)) / 2
    else:
        # (1 + tanh(y)) / 2 is the sigmoid of 2 y.
        activated = values * _sigmoid(values * (1 + 0.044715 * values * values) * _TWICE_SQRT_2_BY_PI)
    activated = activated.to(output.dtype.element_ty).to(tl.float32)
    tl.store(output + row * FEATURES + feature, (activated * factors).to(output.dtype.element_ty), mask=is_element)


@triton.jit
def _sigmoid(x: tl.tensor) -> tl.tensor:
    """1 / (1 + exp(-x)), which overflows at neither end."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x < 0, small, 1.0) / (1 + small)
