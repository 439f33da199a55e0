"""The RMS norm, and the addition before one, in Triton. Device code; `norm.py` launches it.

Programs (row, part): each norms PART of the row's groups, all of whose features it holds at once. Arithmetic is
float32; the sum of the addition is rounded before it is normed, because the next addition reads it so.
"""

# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator"

import triton
import triton.language as tl

__all__ = ["rms_norm"]


@triton.jit
def rms_norm(
    output: tl.tensor,  # (num_rows, GROUPS, FEATURES)
    x: tl.tensor,  # (num_rows, GROUPS, FEATURES)
    addend: tl.tensor,  # as x; None where not HAS_ADDEND
    total: tl.tensor,  # as output, x + addend; None where not HAS_ADDEND
    gain: tl.tensor,  # float32 (FEATURES,)
    x_stride: tl.tensor,
    addend_stride: tl.tensor,
    eps: tl.tensor,
    GROUPS: tl.constexpr,
    FEATURES: tl.constexpr,
    PART: tl.constexpr,
    WIDTH: tl.constexpr,  # the power of two from FEATURES
    HAS_ADDEND: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * PART + tl.arange(0, PART)
    feature = tl.arange(0, WIDTH)
    is_element = (group < GROUPS)[:, None] & (feature < FEATURES)[None, :]
    at = group[:, None] * FEATURES + feature[None, :]
    into = row * (GROUPS * FEATURES) + at
    values = tl.load(x + row * x_stride + at, mask=is_element, other=0.0).to(tl.float32)
    if HAS_ADDEND:
        values += tl.load(addend + row * addend_stride + at, mask=is_element, other=0.0).to(tl.float32)
        rounded = values.to(total.dtype.element_ty)
        tl.store(total + into, rounded, mask=is_element)
        values = rounded.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(values * values, 1) / FEATURES + eps)
    # One gain for each value, so that nothing moves between threads; all but the first come from the cache.
    gains = tl.load(gain + (0 * group[:, None] + feature[None, :]), mask=is_element, other=0.0)
    normed = values * inverse[:, None] * gains
    tl.store(output + into, normed.to(output.dtype.element_ty), mask=is_element)
