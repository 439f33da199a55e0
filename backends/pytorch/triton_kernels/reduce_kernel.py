"""What the splits of paged attention found, put together. Device code; `paged_attention.py` launches it.

Each split left, for a row, the maximum m of its scores, the sum s of exp2(score - m) and the values so weighted. With
the overall maximum M, the result is the sum of exp2(m - M) * values over the sum of exp2(m - M) * s.
"""

# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator"

import triton
import triton.language as tl

__all__ = ["reduce_splits"]


@triton.jit(do_not_specialize=["num_seqs", "num_splits"], do_not_specialize_on_alignment=["query_start"])
def reduce_splits(
    output: tl.tensor,  # (num_tokens, NUM_HEADS, HEAD_DIM)
    partial: tl.tensor,  # float32 (num_tokens, NUM_HEADS, num_splits, HEAD_DIM)
    maxima: tl.tensor,  # float32 (num_tokens, NUM_HEADS, num_splits)
    sums: tl.tensor,
    query_start: tl.tensor,  # (num_seqs + 1,)
    num_seqs: tl.tensor,
    num_splits: tl.tensor,
    output_stride: tl.tensor,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    MOST_SPLITS: tl.constexpr,
) -> None:
    """One program a token and head. Tokens past the last sequence's are left alone."""
    token = tl.program_id(0)
    head = tl.program_id(1)
    if token >= tl.load(query_start + num_seqs):
        return
    split = tl.arange(0, MOST_SPLITS)
    feature = tl.arange(0, WIDTH)
    part = (token.to(tl.int64) * NUM_HEADS + head) * num_splits + split
    maximum = tl.load(maxima + part, mask=split < num_splits, other=float("-inf"))
    total = tl.load(sums + part, mask=split < num_splits, other=0.0)
    # A split without a key of this row has a maximum of -inf and weighs 0: its values are zeros and need not be read.
    # One split at least has a key, the token itself.
    weight = tl.exp2(maximum - tl.max(maximum, 0))
    is_element = (weight > 0)[:, None] & (feature < HEAD_DIM)[None, :]
    values = tl.load(partial + part[:, None] * HEAD_DIM + feature[None, :], mask=is_element, other=0.0)
    result = tl.sum(values * weight[:, None], 0) / tl.sum(total * weight, 0)
    at = token.to(tl.int64) * output_stride + head * HEAD_DIM + feature
    tl.store(output + at, result.to(output.dtype.element_ty), mask=feature < HEAD_DIM)
