"""The sampler of `nanovllm.sampler` in Triton. Device code; `sampling.py` launches it.

A row is looked at in chunks of CHUNK logits, first by a program each, then by one program a row:

    sum_chunks   per chunk  its largest logit, and the sum of its weights relative to that
    pick_tokens  per row    greedy: the first chunk with the largest logit, and the place in it
                            random: thresholds, the chunk in which the running sum exceeds the target, the place in it

So a plain random row is read once, and one chunk of it again. A threshold (the k-th largest logit, the smallest of the
nucleus) is sought among *keys*, integers in the order of the logits: each pass over the row counts, or sums the weights
of, what is at or above three pivots that quarter the bracket, and finds the ends of what lies in the bracket:

    keys   lo .... q1 .... q2 .... q3 .... hi        weight of all from q2 on reaches the target, from q3 on not:
           |   x x |  xx x |   x   | x  xx |         the answer is in q2 .. q3 - 1

so 16 passes are the most, and 9 for bfloat16. Far fewer do where few tokens hold the weight: the bracket begins at a
bound that the sums give, its ends are drawn in to logits that exist, and chunks that do not reach it are left out.

Weights are float64. Ties are ties of weights, as in the definition. Nothing depends on the other rows of a launch.
"""

# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator"

import triton
import triton.language as tl

__all__ = ["pick_tokens", "sum_chunks"]

_NAN_KEY: tl.constexpr = tl.constexpr(0x7FFFFFFF)  # above all, as in an arg-max
_INF_KEY: tl.constexpr = tl.constexpr(0x7F800000)
_MINUS_INF_KEY: tl.constexpr = tl.constexpr(-0x7F800001)
_LARGEST_FLOAT: tl.constexpr = tl.constexpr(3.4028234663852886e38)
_SMALLEST: tl.constexpr = tl.constexpr(2.3e-308)  # weights below that change no sum
_NOWHERE: tl.constexpr = tl.constexpr(0x7FFFFFFF)


@triton.jit(do_not_specialize_on_alignment=["parameters"])
def sum_chunks(
    maxima: tl.tensor,  # int32 (num_rows, num_chunks), keys
    sums: tl.tensor,  # float64 (num_rows, num_chunks); 0 where the largest logit is not finite
    logits: tl.tensor,  # (num_rows, vocab_size)
    parameters: tl.tensor,  # float64 (5, num_rows)
    vocab_size: tl.tensor,
    logits_stride: tl.tensor,
    CHUNK: tl.constexpr,
) -> None:
    """One program a row and chunk."""
    row = tl.program_id(0)
    chunk = tl.program_id(1)
    at = row * tl.num_programs(1) + chunk
    _, x = _load(logits + row.to(tl.int64) * logits_stride, chunk, vocab_size, CHUNK)
    largest = tl.max(_key(x))
    tl.store(maxima + at, largest)
    temperature = tl.load(parameters + row)
    if temperature > 0:
        total = tl.zeros([], tl.float64)
        if _is_finite(largest):
            total = tl.sum(_weights(x, _logit(largest).to(tl.float64), 1 / temperature))
        tl.store(sums + at, total)


# The number of rows and the alignment of their parameters are no reason to compile anew in the middle of serving.
@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=["parameters"])
def pick_tokens(
    tokens: tl.tensor,  # int64 (num_rows,)
    logits: tl.tensor,  # (num_rows, vocab_size)
    maxima: tl.tensor,  # of `sum_chunks`
    sums: tl.tensor,
    parameters: tl.tensor,  # float64 (5, num_rows): temperature, top_k, top_p, min_p, uniform random number
    num_rows: tl.tensor,
    vocab_size: tl.tensor,
    logits_stride: tl.tensor,
    CHUNK: tl.constexpr,
    NUM_CHUNKS: tl.constexpr,
    WIDTH: tl.constexpr,  # NUM_CHUNKS or the next power of two
) -> None:
    """One program a row."""
    row = tl.program_id(0)
    logits += row.to(tl.int64) * logits_stride
    maxima += row * NUM_CHUNKS
    chunk = tl.arange(0, WIDTH)
    largest_of = tl.load(maxima + chunk, mask=chunk < NUM_CHUNKS, other=_MINUS_INF_KEY)
    largest = tl.max(largest_of)
    is_random = tl.load(parameters + row) > 0
    if is_random & _is_finite(largest):
        token = _draw(
            logits, maxima, sums + row * NUM_CHUNKS, parameters + row, num_rows, vocab_size, largest_of, largest,
            CHUNK, NUM_CHUNKS, WIDTH,
        )  # fmt: skip
    elif is_random & (largest != _INF_KEY):  # a NaN, or nothing but -inf
        token = vocab_size - 1
    else:
        is_holder = (largest_of == largest) & (chunk < NUM_CHUNKS)
        first = tl.min(tl.where(is_holder, chunk, _NOWHERE))
        last = tl.max(tl.where(is_holder, chunk, 0))
        ids, x = _load(logits, tl.where(is_random, last, first), vocab_size, CHUNK)
        is_largest = (_key(x) == largest) & (ids < vocab_size)
        first = tl.min(tl.where(is_largest, ids, _NOWHERE))
        last = tl.max(tl.where(is_largest, ids, 0))
        token = tl.where(is_random, last, first)
    tl.store(tokens + row, token.to(tl.int64))


@triton.jit
def _draw(
    logits: tl.tensor,
    maxima: tl.tensor,
    sums: tl.tensor,
    parameters: tl.tensor,
    num_rows: tl.tensor,
    vocab_size: tl.tensor,
    largest_of: tl.tensor,  # of each chunk: `maxima`
    largest: tl.tensor,
    CHUNK: tl.constexpr,
    NUM_CHUNKS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> tl.tensor:
    """The token of a random row whose largest logit is finite."""
    chunk = tl.arange(0, WIDTH)
    temperature = tl.load(parameters)
    top_k = tl.load(parameters + num_rows)
    top_p = tl.load(parameters + 2 * num_rows)
    least = tl.load(parameters + 3 * num_rows)  # the smallest weight that is kept; as yet min_p
    base = _logit(largest).to(tl.float64)
    scale = 1 / temperature
    lowest = _key_below(least, base, temperature)  # no logit below this key is kept
    if (top_k > 0) & (top_k < vocab_size):
        bound = lowest
        if top_k <= NUM_CHUNKS:
            bound = tl.maximum(bound, _kth_largest(largest_of, top_k))
        kth = _threshold(logits, maxima, vocab_size, bound, largest, top_k, base, scale, CHUNK, NUM_CHUNKS, True)
        least = tl.maximum(least, _weights(_logit(kth), base, scale))
        lowest = tl.maximum(lowest, _key_below(least, base, temperature))  # below the k-th one lie its ties
    if least > 0:
        kept = _sums_from(logits, maxima, vocab_size, lowest, least, base, scale, CHUNK, NUM_CHUNKS, WIDTH)
    else:
        kept = tl.load(sums + chunk, mask=chunk < NUM_CHUNKS, other=0.0) * _weights(_logit(largest_of), base, scale)
    if top_p < 1:
        total = tl.sum(kept)
        # Weights below this are, all together, less than the nucleus leaves out.
        bound = tl.maximum(lowest, _key_below((1 - top_p) * total / vocab_size, base, temperature))
        target = top_p * total
        last = _threshold(logits, maxima, vocab_size, bound, largest, target, base, scale, CHUNK, NUM_CHUNKS, False)
        least = tl.maximum(least, _weights(_logit(last), base, scale))
        lowest = tl.maximum(lowest, _key_below(least, base, temperature))
        kept = _sums_from(logits, maxima, vocab_size, lowest, least, base, scale, CHUNK, NUM_CHUNKS, WIDTH)
    target = tl.load(parameters + 4 * num_rows) * tl.sum(kept)
    drawn = _first_beyond(target, tl.cumsum(kept), kept, chunk)
    before = tl.sum(tl.where(chunk < drawn, kept, 0.0))
    token, x = _load(logits, drawn, vocab_size, CHUNK)
    weights = _weights(x, base, scale)
    weights = tl.where(weights >= least, weights, 0.0)
    return _first_beyond(target, before + tl.cumsum(weights), weights, token)


@triton.jit
def _threshold(
    logits: tl.tensor,
    maxima: tl.tensor,
    vocab_size: tl.tensor,
    lo: tl.tensor,
    hi: tl.tensor,
    target: tl.tensor,
    base: tl.tensor,
    scale: tl.tensor,
    CHUNK: tl.constexpr,
    NUM_CHUNKS: tl.constexpr,
    COUNT: tl.constexpr,
) -> tl.tensor:
    """The largest key in lo .. hi from which on there are `target` logits, or weights of that sum; lo at least.

    hi: the largest of the row. Each pass leaves a quarter of the bracket or less.
    """
    lo = lo.to(tl.int64)  # the difference of two keys may have 33 bits
    hi = hi.to(tl.int64)
    while lo < hi:
        span = hi - lo
        q1 = lo + (span + 3) // 4
        q2 = lo + (2 * span + 3) // 4
        q3 = lo + (3 * span + 3) // 4
        from_lo, from_q1, from_q2, from_q3, to_hi = _logit(lo), _logit(q1), _logit(q2), _logit(q3), _logit(hi)
        sum1 = tl.zeros([CHUNK], tl.float64)
        sum2 = tl.zeros([CHUNK], tl.float64)
        sum3 = tl.zeros([CHUNK], tl.float64)
        low = tl.full([CHUNK], float("inf"), tl.float32)
        high = tl.full([CHUNK], float("-inf"), tl.float32)
        for chunk in range(NUM_CHUNKS):
            if tl.load(maxima + chunk) >= lo:
                _, x = _load(logits, chunk, vocab_size, CHUNK)
                weights = tl.full([CHUNK], 1.0, tl.float64) if COUNT else _weights(x, base, scale)
                sum1 += tl.where(x >= from_q1, weights, 0.0)
                sum2 += tl.where(x >= from_q2, weights, 0.0)
                sum3 += tl.where(x >= from_q3, weights, 0.0)
                is_inside = (x >= from_lo) & (x <= to_hi)
                low = tl.minimum(low, tl.where(is_inside, x, float("inf")))
                high = tl.maximum(high, tl.where(is_inside, x, float("-inf")))
        reaches1 = tl.sum(sum1) >= target
        reaches2 = tl.sum(sum2) >= target
        reaches3 = tl.sum(sum3) >= target
        lo = tl.where(reaches3, q3, tl.where(reaches2, q2, tl.where(reaches1, q1, lo)))
        hi = tl.where(reaches3, hi, tl.where(reaches2, q3 - 1, tl.where(reaches1, q2 - 1, q1 - 1)))
        lo = tl.maximum(lo, _key(tl.min(low)).to(tl.int64))
        hi = tl.minimum(hi, _key(tl.max(high)).to(tl.int64))
    return lo.to(tl.int32)


@triton.jit
def _sums_from(
    logits: tl.tensor,
    maxima: tl.tensor,
    vocab_size: tl.tensor,
    lowest: tl.tensor,
    least: tl.tensor,
    base: tl.tensor,
    scale: tl.tensor,
    CHUNK: tl.constexpr,
    NUM_CHUNKS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> tl.tensor:
    """float64 (WIDTH,): each chunk's sum of the weights that are at least `least`; none is below the key `lowest`."""
    sums = tl.zeros([WIDTH], tl.float64)
    for chunk in range(NUM_CHUNKS):
        if tl.load(maxima + chunk) >= lowest:
            _, x = _load(logits, chunk, vocab_size, CHUNK)
            weights = _weights(x, base, scale)
            total = tl.sum(tl.where(weights >= least, weights, 0.0))
            sums = tl.where(tl.arange(0, WIDTH) == chunk, total, sums)
    return sums


@triton.jit
def _kth_largest(keys: tl.tensor, k: tl.tensor) -> tl.tensor:
    """Of a few: those that have fewer than k above them, and the smallest of these."""
    num_above = tl.sum((keys[None, :] > keys[:, None]).to(tl.int32), 1)
    return tl.min(tl.where(num_above < k, keys, _NAN_KEY))


@triton.jit
def _first_beyond(target: tl.tensor, running: tl.tensor, weights: tl.tensor, index: tl.tensor) -> tl.tensor:
    """The first index with a weight whose running sum exceeds the target; where rounding leaves none, the last index
    with a weight. The running sums of neighbours may be rounded differently: without a weight, none is taken."""
    has_weight = weights > 0
    first = tl.min(tl.where(has_weight & (running > target), index, _NOWHERE))
    return tl.minimum(first, tl.max(tl.where(has_weight, index, 0)))


@triton.jit
def _load(
    logits: tl.tensor, chunk: tl.tensor, vocab_size: tl.tensor, CHUNK: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Token ids and logits, float32, of a chunk of one row; -inf past the last one."""
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    return token, tl.load(logits + token, mask=token < vocab_size, other=float("-inf")).to(tl.float32)


@triton.jit
def _weights(x: tl.tensor, base: tl.tensor, scale: tl.tensor) -> tl.tensor:
    return tl.exp((x.to(tl.float64) - base) * scale)


@triton.jit
def _key(x: tl.tensor) -> tl.tensor:
    """int32 in the order of float32; both zeros are one."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return tl.where(x == x, bits ^ ((bits >> 31) & 0x7FFFFFFF), _NAN_KEY)


@triton.jit
def _logit(key: tl.tensor) -> tl.tensor:
    """The float32 of a key."""
    key = key.to(tl.int32)
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _is_finite(key: tl.tensor) -> tl.tensor:
    return (key > _MINUS_INF_KEY) & (key < _INF_KEY)


@triton.jit
def _key_below(weight: tl.tensor, base: tl.tensor, temperature: tl.tensor) -> tl.tensor:
    """A key below those of all logits of at least that weight, by no more than what rounding may do."""
    logit = base + temperature * (tl.log(tl.maximum(weight, _SMALLEST)) - 1e-9)
    return _key(tl.maximum(logit, -_LARGEST_FLOAT).to(tl.float32)) - 1
