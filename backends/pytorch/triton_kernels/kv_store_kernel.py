"""Rotary position embedding and the write into the KV cache, in Triton. Device code; `kv_store.py` launches it.

Programs (token, part): the first parts turn HEADS query heads each, in place; the others turn HEADS key heads and put
them, with the values of those heads, where the token's slot is. Arithmetic is float32.
"""

# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator"

import triton
import triton.language as tl

__all__ = ["rotate_and_store"]


@triton.jit(do_not_specialize_on_alignment=["slot_mapping"])
def rotate_and_store(
    query: tl.tensor,  # (num_tokens, NUM_HEADS, HEAD_DIM)
    key: tl.tensor,  # (num_tokens, NUM_KV_HEADS, HEAD_DIM)
    value: tl.tensor,
    key_cache: tl.tensor,  # (num_blocks, block_size, NUM_KV_HEADS, HEAD_DIM)
    value_cache: tl.tensor,
    slot_mapping: tl.tensor,  # (num_tokens,)
    cos: tl.tensor,  # float32 (num_tokens, NUM_PAIRS); None where NUM_PAIRS is 0
    sin: tl.tensor,
    query_stride: tl.tensor,
    key_stride: tl.tensor,
    value_stride: tl.tensor,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    NUM_PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HEADS: tl.constexpr,
    QUERY_PARTS: tl.constexpr,
    PAIRS_WIDTH: tl.constexpr,  # powers of two from NUM_PAIRS, the features that do not turn, and HEAD_DIM
    REST_WIDTH: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + token).to(tl.int64)
    if slot < 0:  # padding of a captured graph
        return
    part = tl.program_id(1)
    head = tl.arange(0, HEADS)[:, None]
    if NUM_PAIRS > 0:
        pair = tl.arange(0, PAIRS_WIDTH)
        is_pair = (pair < NUM_PAIRS)[None, :]
        c = tl.load(cos + token * NUM_PAIRS + pair, mask=pair < NUM_PAIRS, other=0.0)[None, :]
        s = tl.load(sin + token * NUM_PAIRS + pair, mask=pair < NUM_PAIRS, other=0.0)[None, :]
        one = (2 * pair if INTERLEAVED else pair)[None, :]
        other = one + (1 if INTERLEAVED else NUM_PAIRS)
    if part < QUERY_PARTS:
        if NUM_PAIRS > 0:
            heads = part * HEADS + head
            base = query + token * query_stride + heads * HEAD_DIM
            _turn(base, base, one, other, c, s, is_pair & (heads < NUM_HEADS))
    else:
        heads = (part - QUERY_PARTS) * HEADS + head
        is_head = heads < NUM_KV_HEADS
        base = key + token * key_stride + heads * HEAD_DIM
        into = (slot * NUM_KV_HEADS + heads) * HEAD_DIM
        if NUM_PAIRS > 0:
            _turn(base, key_cache + into, one, other, c, s, is_head & is_pair)
        if HEAD_DIM > 2 * NUM_PAIRS:
            rest = (2 * NUM_PAIRS + tl.arange(0, REST_WIDTH))[None, :]
            _copy(base + rest, key_cache + into + rest, is_head & (rest < HEAD_DIM))
        feature = tl.arange(0, WIDTH)[None, :]
        base = value + token * value_stride + heads * HEAD_DIM
        _copy(base + feature, value_cache + into + feature, is_head & (feature < HEAD_DIM))


@triton.jit
def _turn(
    source: tl.tensor,
    target: tl.tensor,
    one: tl.tensor,
    other: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    mask: tl.tensor,
) -> None:
    """The features `one` and `other` of heads at `source`, turned, to the same features at `target`."""
    a = tl.load(source + one, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(source + other, mask=mask, other=0.0).to(tl.float32)
    tl.store(target + one, (a * cos - b * sin).to(target.dtype.element_ty), mask=mask)
    tl.store(target + other, (b * cos + a * sin).to(target.dtype.element_ty), mask=mask)


@triton.jit
def _copy(source: tl.tensor, target: tl.tensor, mask: tl.tensor) -> None:
    tl.store(target, tl.load(source, mask=mask, other=0.0).to(target.dtype.element_ty), mask=mask)
