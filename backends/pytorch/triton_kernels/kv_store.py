"""Launches norms and rotation of queries and keys, and the write of keys and values into a layer's pools."""

from typing import Any

from torch import Tensor

from backends.pytorch.attention import HeadGains
from backends.pytorch.triton_kernels.device_code import device_code
from backends.pytorch.triton_kernels.tiling import power_of_two_from

__all__ = ["rotate_and_store"]

_MOST_HEADS = 8  # of one program: a warp's registers hold them, and a decode of few tokens still fills the device


def rotate_and_store(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    *,
    num_heads: int,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    interleaved: bool = False,
    gains: HeadGains | None = None,
) -> None:
    """Turns the query in place and writes the turned key and the value of each token into the pools.

    query: (num_tokens, num_heads * head_dim), written to. key, value: (num_tokens, num_kv_heads * head_dim), not
    written to. All three may be columns of one merged product: features adjacent, any distance between tokens.
    key_cache, value_cache: (num_blocks, block_size, num_kv_heads, head_dim), contiguous, written to.
    slot_mapping: int32 (num_tokens,), block * block_size + offset; tokens of a negative slot are left alone: padding.
    cos, sin: float32 (num_tokens, rotary_dim / 2) or (num_tokens, 1, rotary_dim / 2), contiguous, of each token's
    position; the first rotary_dim features of a head turn. None: nothing turns, and without gains the query is left
    alone. interleaved: features 2 i and 2 i + 1 turn together, else i and i + rotary_dim / 2. gains: of RMS norms of
    each head before it turns, None for none; what is normed is rounded to the tensors' dtype.

    Allocates nothing and waits for nothing. Raises `ConfigError` where Triton is not installed.
    """
    _, _, num_kv_heads, head_dim = key_cache.shape
    num_tokens = query.shape[0]
    num_pairs = 0 if cos is None else cos.shape[-1]
    _check(query, key, value, key_cache, value_cache, cos, sin)
    if num_tokens == 0:
        return
    heads = min(_MOST_HEADS, power_of_two_from(max(num_heads, num_kv_heads)))
    query_parts = -(-num_heads // heads) if num_pairs or gains else 0
    kernel: Any = device_code().rotate_and_store
    kernel[(num_tokens, query_parts + -(-num_kv_heads // heads))](
        query, key, value, key_cache, value_cache, slot_mapping, cos, sin,
        *(gains or (None, None, 0.0)), query.stride(0), key.stride(0), value.stride(0),
        NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HEAD_DIM=head_dim, NUM_PAIRS=num_pairs, INTERLEAVED=interleaved,
        NORMED=gains is not None, HEADS=heads, QUERY_PARTS=query_parts, PAIRS_WIDTH=power_of_two_from(num_pairs),
        REST_WIDTH=power_of_two_from(head_dim - 2 * num_pairs), WIDTH=power_of_two_from(head_dim), num_warps=2,
    )  # fmt: skip


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
) -> None:
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1, "features must be adjacent"
    assert key_cache.is_contiguous(), "pools must be contiguous"
    assert value_cache.is_contiguous(), "pools must be contiguous"
    assert (cos is None) == (sin is None), "cos and sin come together"
    if cos is not None and sin is not None:
        assert cos.is_contiguous(), "rows of cos must follow one another"
        assert sin.is_contiguous(), "rows of sin must follow one another"
        assert 2 * cos.shape[-1] <= key_cache.shape[-1], "more features turn than a head has"
