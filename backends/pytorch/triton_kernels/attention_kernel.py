"""Paged attention in Triton: decode and prefill in one kernel. Device code; `paged_attention.py` launches it.

A program works on a *row block*, one KV head and one part (*split*) of the keys. Rows are the query heads that share
the KV head, of consecutive tokens of one sequence, so that each key is read once for all of them and a decode step
still fills the rows of a matrix product:

    GROUP = 3, ROWS = 16    row     0   1   2 | 3   4   5 | ...  12  13  14 | 15
                            token   0   0   0 | 1   1   1 | ...   4   4   4 |  -    ROWS // GROUP = 5 tokens
                            head    0   1   2 | 0   1   2 | ...   0   1   2 |  -

How many row blocks there are depends on lengths that the host need not know when it launches: sequence i has at most
one more than the blocks that begin between its first token and the next sequence's, so its blocks are numbered from
query_start[i] // tokens per block + i, and num_tokens // tokens per block + num_seqs is a bound. Programs past the end
of their sequence return at once. The row blocks and the online softmax follow arXiv 2511.11581 and 2205.14135.

Programs start in the order of their numbers, of which the KV head is the fastest to change: the heads of a token lie
beside each other in memory. Row blocks that see many keys start first, so that none is left alone at the end.
"""

# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator"

import triton
import triton.language as tl

__all__ = ["attend"]

_LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)

_SIZES = ["num_seqs", "num_splits", "table_width", "window"]
_STEP = ["query_start", "context_lens", "block_tables", "order"]


# A step's sizes and the alignment of its arrays are no reason to compile anew in the middle of serving.
@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_STEP)
def attend(
    output: tl.tensor,  # (num_tokens, num_heads, head_dim)
    query: tl.tensor,  # (num_tokens, num_heads, head_dim)
    key_cache: tl.tensor,  # (num_blocks, BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM)
    value_cache: tl.tensor,
    query_start: tl.tensor,  # (num_seqs + 1,)
    context_lens: tl.tensor,  # (num_seqs,)
    block_tables: tl.tensor,  # (num_seqs, table_width)
    order: tl.tensor,  # (num_seqs,), of sequences where ONE_TOKEN; or None
    partial: tl.tensor,  # float32 (num_tokens, num_heads, num_splits, HEAD_DIM); None where not IS_SPLIT
    maxima: tl.tensor,  # float32 (num_tokens, num_heads, num_splits), with `sums`
    sums: tl.tensor,
    num_seqs: tl.tensor,
    num_splits: tl.tensor,
    query_stride: tl.tensor,
    output_stride: tl.tensor,
    table_width: tl.tensor,
    scale: tl.tensor,
    window: tl.tensor,
    softcap: tl.tensor,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,  # HEAD_DIM or the next power of two from 16
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    ONE_TOKEN: tl.constexpr,  # no sequence has more than one token
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    WIDEN: tl.constexpr,  # multiply in float32 whatever the pools' type
) -> None:
    seq, block = _row_block(query_start, order, num_seqs, NUM_KV_HEADS, ROWS // GROUP, ONE_TOKEN)
    first_token = tl.load(query_start + seq)
    num_tokens = tl.load(query_start + seq + 1) - first_token
    first = block * (ROWS // GROUP)
    if first >= num_tokens:
        return
    kv_head = tl.program_id(0) % NUM_KV_HEADS
    context = tl.load(context_lens + seq)

    row = tl.arange(0, ROWS)
    token = first + row // GROUP  # within the sequence
    is_row = (row < ROWS // GROUP * GROUP) & (token < num_tokens)
    packed_token = (first_token + token).to(tl.int64)
    head = kv_head * GROUP + row % GROUP
    feature = tl.arange(0, WIDTH)
    is_element = is_row[:, None] & (feature < HEAD_DIM)[None, :]
    at = packed_token * query_stride + head * HEAD_DIM
    rows = tl.load(query + at[:, None] + feature[None, :], mask=is_element, other=0.0)
    if WIDEN:
        rows = rows.to(tl.float32)

    start, middle, stop = _key_range(
        context + first, context + num_tokens, window, num_splits, ROWS // GROUP, KEYS, IS_SPLIT, HAS_WINDOW
    )
    table = block_tables + seq.to(tl.int64) * table_width
    key_heads = key_cache + kv_head * HEAD_DIM
    value_heads = value_cache + kv_head * HEAD_DIM
    place = context + token
    sums_of_values = tl.zeros([ROWS, WIDTH], tl.float32)
    maximum = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    # A decode has one iteration at most that needs a mask: one loop for all, since the second would wait for its first
    # keys with nothing on their way.
    for MASKED in tl.static_range(1 if ONE_TOKEN else 0, 2):
        for key in range(middle if MASKED and not ONE_TOKEN else start, stop if MASKED else middle, KEYS):
            sums_of_values, maximum, total = _attend_keys(
                sums_of_values, maximum, total, rows, key_heads, value_heads, table, key, stop, place, scale, window,
                softcap, NUM_KV_HEADS * HEAD_DIM, HEAD_DIM, WIDTH, BLOCK_SIZE, KEYS, MASKED, HAS_WINDOW, HAS_SOFTCAP,
                WIDEN,
            )  # fmt: skip

    if not IS_SPLIT:
        total = tl.where(total > 0, total, 1.0)  # rows past the sequence may have seen no key
        at = packed_token * output_stride + head * HEAD_DIM
        values = (sums_of_values / total[:, None]).to(output.dtype.element_ty)
        tl.store(output + at[:, None] + feature[None, :], values, mask=is_element)
    else:
        part = (packed_token * (NUM_KV_HEADS * GROUP) + head) * num_splits + tl.program_id(1)
        tl.store(partial + part[:, None] * HEAD_DIM + feature[None, :], sums_of_values, mask=is_element)
        tl.store(maxima + part, maximum, mask=is_row)
        tl.store(sums + part, total, mask=is_row)


@triton.jit
def _row_block(
    query_start: tl.tensor,
    order: tl.tensor,
    num_seqs: tl.tensor,
    NUM_KV_HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    ONE_TOKEN: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The sequence of this program's row block, and which of the sequence's blocks it is."""
    index = tl.program_id(0) // NUM_KV_HEADS
    seq = index
    block = 0
    if ONE_TOKEN:
        if order is not None:
            seq = tl.load(order + index).to(tl.int32)
    else:
        index = tl.num_programs(0) // NUM_KV_HEADS - 1 - index  # the last blocks of a prompt see the most keys
        low = 0
        high = num_seqs
        while high - low > 1:  # the last sequence whose blocks begin at or before `index`
            middle = (low + high) // 2
            if tl.load(query_start + middle) // TOKENS + middle <= index:
                low = middle
            else:
                high = middle
        seq = low
        block = index - (tl.load(query_start + seq) // TOKENS + seq)
    return seq, block


@triton.jit
def _key_range(
    place: tl.tensor,  # of the first row in its sequence
    length: tl.tensor,  # of the sequence, new tokens included
    window: tl.tensor,
    num_splits: tl.tensor,
    TOKENS: tl.constexpr,
    KEYS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """This program's keys start .. stop; every row sees those before `middle`."""
    stop = tl.minimum(place + TOKENS, length)  # one past the last key that any row sees
    start = 0
    if HAS_WINDOW:
        start = tl.maximum(place - window + 1, 0) // KEYS * KEYS
    # With a window the left edge cuts rows as well: all keys are looked at.
    middle = start if HAS_WINDOW else (place + 1) // KEYS * KEYS
    if IS_SPLIT:
        share = tl.cdiv(tl.cdiv(stop - start, KEYS), num_splits) * KEYS
        start += tl.program_id(1) * share
        stop = tl.minimum(stop, start + share)
    return start, tl.minimum(tl.maximum(middle, start), stop), stop


@triton.jit
def _attend_keys(
    sums_of_values: tl.tensor,
    maximum: tl.tensor,
    total: tl.tensor,
    rows: tl.tensor,
    key_heads: tl.tensor,
    value_heads: tl.tensor,
    table: tl.tensor,
    first_key: tl.tensor,
    stop: tl.tensor,
    place: tl.tensor,
    scale: tl.tensor,
    window: tl.tensor,
    softcap: tl.tensor,
    SLOT: tl.constexpr,  # elements of a slot
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEYS: tl.constexpr,
    MASKED: tl.constexpr,  # 1: not every row sees every key; 0: all do
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    WIDEN: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """One iteration of the online softmax: the sums so far, over KEYS more keys. Exponentials are to the base of 2."""
    key = first_key + tl.arange(0, KEYS)
    feature = tl.arange(0, WIDTH)
    is_key = key < stop
    # What lies past the last key may be of another sequence, or NaN: it is not read, since 0 * NaN would be NaN.
    is_loaded = (is_key | (MASKED == 0))[:, None] & (feature < HEAD_DIM)[None, :]
    block = tl.load(table + key // BLOCK_SIZE, mask=is_key, other=0).to(tl.int64)
    at = (block * BLOCK_SIZE + key % BLOCK_SIZE)[:, None] * SLOT + feature[None, :]
    if MASKED or WIDTH != HEAD_DIM:
        keys = tl.load(key_heads + at, mask=is_loaded, other=0.0)
        values = tl.load(value_heads + at, mask=is_loaded, other=0.0)
    else:
        keys = tl.load(key_heads + at)
        values = tl.load(value_heads + at)
    if WIDEN:
        keys = keys.to(tl.float32)
        values = values.to(tl.float32)

    # tf32x3: float32 in three products on tensor cores, to float32's accuracy; plain products spill every register.
    scores = tl.dot(rows, tl.trans(keys), input_precision="tf32x3")
    if HAS_SOFTCAP:
        # tanh(x) = 1 - 2 / (exp(2 x) + 1), which neither end overflows.
        scores = 1 - 2 / (tl.exp2(scores * (2 * scale / softcap * _LOG2_E)) + 1)
        scores *= softcap * _LOG2_E
    else:
        scores *= scale * _LOG2_E
    if MASKED:
        seen = is_key[None, :] & (key[None, :] <= place[:, None])
        if HAS_WINDOW:
            seen = seen & (key[None, :] > place[:, None] - window)
        scores = tl.where(seen, scores, float("-inf"))

    new_maximum = tl.maximum(maximum, tl.max(scores, 1))
    # A row that has seen no key yet: -inf - -inf would be NaN.
    base = tl.where(new_maximum == float("-inf"), 0.0, new_maximum) if MASKED else new_maximum
    weights = tl.exp2(scores - base[:, None])
    kept = tl.exp2(maximum - base)
    total = total * kept + tl.sum(weights, 1)
    sums_of_values = tl.dot(weights.to(values.dtype), values, sums_of_values * kept[:, None], input_precision="tf32x3")
    return sums_of_values, new_maximum, total
