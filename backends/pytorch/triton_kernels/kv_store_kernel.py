"""Norms of heads, rotary position embedding and the write into the KV cache, in Triton. Device code; `kv_store.py`
launches it.

Programs (token, part): the first parts norm and turn HEADS query heads each, in place; the others norm and turn HEADS
key heads and put them, with the values of those heads, where the token's slot is. Arithmetic is float32; what is normed
is rounded before it is turned, as where the norm is an operation of its own.
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
    query_gain: tl.tensor,  # float32 (HEAD_DIM,); None where not NORMED
    key_gain: tl.tensor,
    eps: tl.tensor,
    query_stride: tl.tensor,
    key_stride: tl.tensor,
    value_stride: tl.tensor,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    NUM_PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    NORMED: tl.constexpr,
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
    if part < QUERY_PARTS:
        heads = part * HEADS + head
        base = query + token * query_stride + heads * HEAD_DIM
        _put_heads(
            base, base, heads < NUM_HEADS, query_gain, eps, cos, sin, token,
            HEADS, HEAD_DIM, NUM_PAIRS, PAIRS_WIDTH, REST_WIDTH, INTERLEAVED, NORMED, NORMED,
        )  # fmt: skip
    else:
        heads = (part - QUERY_PARTS) * HEADS + head
        is_head = heads < NUM_KV_HEADS
        into = (slot * NUM_KV_HEADS + heads) * HEAD_DIM
        base = key + token * key_stride + heads * HEAD_DIM
        _put_heads(
            base, key_cache + into, is_head, key_gain, eps, cos, sin, token,
            HEADS, HEAD_DIM, NUM_PAIRS, PAIRS_WIDTH, REST_WIDTH, INTERLEAVED, NORMED, True,
        )  # fmt: skip
        feature = tl.arange(0, WIDTH)[None, :]
        is_element = is_head & (feature < HEAD_DIM)
        values = tl.load(value + token * value_stride + heads * HEAD_DIM + feature, mask=is_element, other=0.0)
        tl.store(value_cache + into + feature, values.to(value_cache.dtype.element_ty), mask=is_element)


@triton.jit
def _put_heads(
    source: tl.tensor,  # (HEADS, 1), of the heads' first features
    target: tl.tensor,
    is_head: tl.tensor,
    gain: tl.tensor,
    eps: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    token: tl.tensor,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    NUM_PAIRS: tl.constexpr,
    PAIRS_WIDTH: tl.constexpr,
    REST_WIDTH: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    NORMED: tl.constexpr,
    PUTS_REST: tl.constexpr,  # whether features that do not turn are put as well
) -> None:
    """Heads at `source`, normed and turned, to `target`."""
    HAS_REST: tl.constexpr = PUTS_REST and HEAD_DIM > 2 * NUM_PAIRS
    pair = tl.arange(0, PAIRS_WIDTH)[None, :]
    is_pair = pair < NUM_PAIRS
    one = 2 * pair if INTERLEAVED else pair
    other = one + (1 if INTERLEAVED else NUM_PAIRS)
    rest = (2 * NUM_PAIRS + tl.arange(0, REST_WIDTH))[None, :]
    is_rest = rest < HEAD_DIM
    if NUM_PAIRS > 0:
        a = tl.load(source + one, mask=is_head & is_pair, other=0.0).to(tl.float32)
        b = tl.load(source + other, mask=is_head & is_pair, other=0.0).to(tl.float32)
    if HAS_REST:
        others = tl.load(source + rest, mask=is_head & is_rest, other=0.0).to(tl.float32)
    if NORMED:
        squares = tl.zeros([HEADS], tl.float32)
        if NUM_PAIRS > 0:
            squares += tl.sum(a * a + b * b, 1)
        if HAS_REST:
            squares += tl.sum(others * others, 1)
        inverse = tl.rsqrt(squares / HEAD_DIM + eps)[:, None]
        if NUM_PAIRS > 0:
            a *= inverse * tl.load(gain + one, mask=is_pair, other=0.0)
            b *= inverse * tl.load(gain + other, mask=is_pair, other=0.0)
            a = a.to(source.dtype.element_ty).to(tl.float32)
            b = b.to(source.dtype.element_ty).to(tl.float32)
        if HAS_REST:
            others *= inverse * tl.load(gain + rest, mask=is_rest, other=0.0)
    if NUM_PAIRS > 0:
        c = tl.load(cos + token * NUM_PAIRS + pair, mask=is_pair, other=0.0)
        s = tl.load(sin + token * NUM_PAIRS + pair, mask=is_pair, other=0.0)
        tl.store(target + one, (a * c - b * s).to(target.dtype.element_ty), mask=is_head & is_pair)
        tl.store(target + other, (b * c + a * s).to(target.dtype.element_ty), mask=is_head & is_pair)
    if HAS_REST:
        tl.store(target + rest, others.to(target.dtype.element_ty), mask=is_head & is_rest)
