"""The kernel that turns queries and keys and writes keys and values into the pools."""

from dataclasses import dataclass, replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from triton_cases import SEEDS, TOLERANCES, assert_close

from backends.pytorch.attention import HeadGains
from backends.pytorch.triton_kernels import PackedStep, paged_attention, rms_norm, rotate_and_store


@dataclass(frozen=True)
class Shape:
    num_tokens: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int
    interleaved: bool
    block_size: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Tokens:
    """Columns of one merged product, pools full of 7, a slot for each token and its tables."""

    query: Tensor
    key: Tensor
    value: Tensor
    pools: Tensor
    slots: Tensor
    cos: Tensor | None
    sin: Tensor | None


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    head_dim = draw(st.sampled_from([8, 16, 20, 64, 80, 96]))
    return Shape(
        num_tokens=draw(st.integers(1, 9)),
        num_heads=draw(st.integers(1, 20)),
        num_kv_heads=draw(st.integers(1, 10)),
        head_dim=head_dim,
        rotary_dim=2 * draw(st.integers(0, head_dim // 2)),
        interleaved=draw(st.booleans()),
        block_size=draw(st.sampled_from([2, 16, 32])),
        dtype=draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])),
    )


def _random_tokens(shape: Shape, seed: int, device: torch.device) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    widths = [heads * shape.head_dim for heads in (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads)]
    merged = torch.randn(shape.num_tokens, sum(widths), generator=generator).to(device, shape.dtype)
    query, key, value = merged.split(widths, 1)
    num_blocks = shape.num_tokens + 1
    pools = torch.full((2, num_blocks, shape.block_size, shape.num_kv_heads, shape.head_dim), 7.0)
    slots = torch.randperm(num_blocks * shape.block_size, generator=generator, dtype=torch.int32)[: shape.num_tokens]
    angles = torch.rand(shape.num_tokens, shape.rotary_dim // 2, generator=generator) * 6
    tables = torch.stack([angles.cos(), angles.sin()]).to(device) if shape.rotary_dim else (None, None)
    return Tokens(query, key, value, pools.to(device, shape.dtype), slots.to(device), *tables)


def _turned(x: Tensor, tokens: Tokens, shape: Shape) -> Tensor:
    """float64 (num_tokens, heads, head_dim): pairs as complex numbers, times exp(i angle)."""
    heads = x.cpu().double().reshape(len(x), -1, shape.head_dim)
    if tokens.cos is None or tokens.sin is None:
        return heads
    turning, rest = heads[..., : shape.rotary_dim], heads[..., shape.rotary_dim :]
    order = (-1, 2) if shape.interleaved else (2, -1)
    pairs = turning.unflatten(-1, order)
    a, b = pairs.unbind(-1 if shape.interleaved else -2)
    product = torch.complex(a, b) * torch.complex(tokens.cos, tokens.sin).cpu()[:, None]
    joined = torch.stack([product.real, product.imag], -1 if shape.interleaved else -2).flatten(-2)
    return torch.cat([joined, rest], -1)


def _store(tokens: Tokens, shape: Shape, slots: Tensor | None = None, gains: HeadGains | None = None) -> None:
    rotate_and_store(
        tokens.query, tokens.key, tokens.value, tokens.pools[0], tokens.pools[1],
        tokens.slots if slots is None else slots,
        num_heads=shape.num_heads, cos=tokens.cos, sin=tokens.sin, interleaved=shape.interleaved, gains=gains,
    )  # fmt: skip


@given(shape=shapes(), seed=SEEDS)
@settings(max_examples=40)
def test_heads_are_turned_and_lie_at_their_slots(shape: Shape, seed: int, interpreted_or_cuda: torch.device) -> None:
    tokens = _random_tokens(shape, seed, interpreted_or_cuda)
    query, key = (_turned(x, tokens, shape) for x in (tokens.query, tokens.key))
    before = [x.clone() for x in (tokens.key, tokens.value)]
    _store(tokens, shape)
    assert_close(tokens.query.reshape(query.shape), query, shape.dtype)
    slots = tokens.slots.long()
    keys, values = tokens.pools.flatten(1, 2)
    assert_close(keys[slots], key, shape.dtype)
    assert torch.equal(values[slots], tokens.value.reshape(values[slots].shape))
    assert torch.equal(tokens.key, before[0])
    assert torch.equal(tokens.value, before[1])
    others = torch.ones(keys.shape[0], dtype=torch.bool, device=keys.device)
    others[slots] = False
    assert (keys[others] == 7).all()
    assert (values[others] == 7).all()


@given(shape=shapes(), seed=SEEDS, eps=st.sampled_from([1e-6, 0.5]))
@settings(max_examples=30)
def test_norms_of_heads_are_those_that_an_operation_of_its_own_computes_before(
    shape: Shape, seed: int, eps: float, interpreted_or_cuda: torch.device
) -> None:
    gains = HeadGains(*(torch.rand(2, shape.head_dim, device=interpreted_or_cuda) + 0.5), eps)
    together, apart = (_random_tokens(shape, seed, interpreted_or_cuda) for _ in range(2))
    _store(together, shape, gains=gains)
    query = rms_norm(apart.query, gains.query, eps, groups=shape.num_heads)
    key = rms_norm(apart.key, gains.key, eps, groups=shape.num_kv_heads)
    apart = replace(apart, query=query, key=key)
    _store(apart, shape)
    unit = torch.finfo(shape.dtype).eps  # sums of squares are added up in another order
    torch.testing.assert_close(together.query, apart.query, rtol=4 * unit, atol=4 * unit)
    torch.testing.assert_close(together.pools, apart.pools, rtol=4 * unit, atol=4 * unit)


@given(shape=shapes(), seed=SEEDS)
@settings(max_examples=15)
def test_tokens_without_a_slot_are_left_alone(shape: Shape, seed: int, interpreted_or_cuda: torch.device) -> None:
    tokens = _random_tokens(shape, seed, interpreted_or_cuda)
    query = tokens.query.clone()
    _store(tokens, shape, torch.full_like(tokens.slots, -1))
    assert torch.equal(tokens.query, query)
    assert (tokens.pools == 7).all()


@given(shape=shapes(), seed=SEEDS)
@settings(max_examples=10)
def test_a_turn_and_its_reverse_give_the_query_back(shape: Shape, seed: int, interpreted_or_cuda: torch.device) -> None:
    tokens = _random_tokens(shape, seed, interpreted_or_cuda)
    query = tokens.query.clone()
    _store(tokens, shape)
    back = Tokens(tokens.query, tokens.key, tokens.value, tokens.pools, tokens.slots, tokens.cos,
                  None if tokens.sin is None else -tokens.sin)  # fmt: skip
    _store(back, shape)
    tolerance = 2 * TOLERANCES[shape.dtype]
    torch.testing.assert_close(tokens.query, query, rtol=tolerance, atol=tolerance)


def test_a_block_far_into_a_large_pool_is_reached(interpreted_or_cuda: torch.device) -> None:
    """The offset of its elements does not fit into 32 bits. The pool's memory is not touched elsewhere."""
    num_blocks = 2**31 // (32 * 64) + 2
    pool = torch.empty(num_blocks, 32, 1, 64, dtype=torch.float16, device=interpreted_or_cuda)
    row = torch.arange(64, dtype=torch.float16, device=interpreted_or_cuda)[None]
    slot = torch.tensor([num_blocks * 32 - 32], dtype=torch.int32, device=interpreted_or_cuda)
    rotate_and_store(row.clone(), row, row, pool, pool, slot, num_heads=1)
    assert torch.equal(pool[-1, :1, 0], row)
    counts = torch.tensor([0, 1], dtype=torch.int32, device=interpreted_or_cuda)
    step = PackedStep(counts, counts[:1], torch.full_like(slot, num_blocks - 1)[None], 1)
    output = torch.zeros_like(row)
    paged_attention(row, pool, pool, output, step, scale=0.1)
    assert torch.equal(output, row)  # one key only: its value
