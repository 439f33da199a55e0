"""The paged attention kernel against attention in float64, and the laws that it must keep."""

from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from triton_cases import (
    DECODE_LENS,
    LENS,
    SEEDS,
    TILINGS,
    UNTOUCHED,
    Layer,
    assert_close,
    expected,
    layers,
    random_step,
)

from backends.pytorch.triton_kernels import PackedStep, SplitWorkspace, Tiling

Lens = tuple[tuple[int, int], ...]
SMALL = Tiling(rows=16, keys=16, num_warps=4, num_stages=2)


def _workspace(head_dim: int, device: torch.device) -> SplitWorkspace:
    """That of a large device, whose parts may be short: even small steps are split."""
    workspace = SplitWorkspace.allocate(head_dim, 32, device, least_keys=16)
    workspace.partial.fill_(float("nan"))  # stale contents are never read
    workspace.maxima.fill_(float("nan"))
    workspace.sums.fill_(float("nan"))
    return workspace


@given(layer=layers(), lens=LENS | DECODE_LENS, tiling=st.none() | TILINGS, seed=SEEDS)
@settings(max_examples=40)
def test_attention_equals_float64_on_ragged_steps(
    layer: Layer, lens: Lens, tiling: Tiling | None, seed: int, interpreted_or_cuda: torch.device
) -> None:
    step = random_step(layer, lens, seed, interpreted_or_cuda)
    assert_close(step.attend(tiling=tiling), expected(step), layer.dtype)


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("lens", [((100, 1), (5, 1)), ((37, 30), (130, 1), (0, 9))], ids=["decode", "mixed"])
def test_attention_takes_the_head_sizes_of_real_models(
    head_dim: int, lens: Lens, interpreted_or_cuda: torch.device
) -> None:
    layer = Layer(num_kv_heads=1, group=2, head_dim=head_dim, block_size=32, dtype=torch.float16)
    step = random_step(layer, lens, head_dim, interpreted_or_cuda)
    assert_close(step.attend(), expected(step), layer.dtype)


@given(layer=layers((torch.float32,)), lens=LENS | DECODE_LENS, seed=SEEDS)
@settings(max_examples=12)
def test_attention_in_parts_equals_attention_in_one(
    layer: Layer, lens: Lens, seed: int, interpreted_or_cuda: torch.device
) -> None:
    step = random_step(layer, lens, seed, interpreted_or_cuda)
    workspace = _workspace(layer.head_dim, interpreted_or_cuda)
    assert_close(step.attend(workspace, SMALL), step.attend(tiling=SMALL), layer.dtype)


def test_short_sequences_leave_parts_empty_beside_a_long_one(interpreted_or_cuda: torch.device) -> None:
    layer = Layer(group=7, head_dim=64, window=50)
    step = random_step(layer, ((300, 1), (0, 1), (17, 1)), 0, interpreted_or_cuda)
    workspace = _workspace(layer.head_dim, interpreted_or_cuda)
    max_keys = step.block_tables.shape[1] * layer.block_size
    assert workspace.num_splits(num_programs=6, num_rows=42, max_keys=max_keys) == 16
    assert_close(step.attend(workspace, SMALL), expected(step), layer.dtype)


@given(layer=layers((torch.float32,)), lens=LENS, seed=SEEDS)
@settings(max_examples=12)
def test_a_sequence_is_answered_alike_alone_and_among_others(
    layer: Layer, lens: Lens, seed: int, interpreted_or_cuda: torch.device
) -> None:
    step = random_step(layer, lens, seed, interpreted_or_cuda)
    together = step.attend()
    alone = torch.cat([step.alone(index).attend() for index in range(len(lens))])
    assert_close(together, alone, layer.dtype)


@given(lens=LENS | DECODE_LENS, seed=SEEDS, num_padding=st.integers(0, 20), num_absent=st.integers(0, 3))
@settings(max_examples=15)
@pytest.mark.parametrize("splits", [False, True], ids=["whole", "in parts"])
def test_a_replayed_graph_with_room_to_spare_changes_nothing(
    lens: Lens, seed: int, num_padding: int, num_absent: int, splits: bool, interpreted_or_cuda: torch.device
) -> None:
    """Rows past the last token and sequences without tokens: they are not written, and the others' results stay."""
    layer = Layer()
    step = random_step(layer, lens, seed, interpreted_or_cuda, num_padding=num_padding)
    packed = step.packed
    padded = PackedStep(
        torch.cat([packed.query_start, packed.query_start[-1:].expand(num_absent)]),
        torch.cat([packed.context_lens, packed.context_lens.new_full((num_absent,), 2**30)]),
        torch.cat([packed.block_tables, packed.block_tables.new_full((num_absent, packed.block_tables.shape[1]), -1)]),
        packed.max_query_len,
    )
    workspace = _workspace(layer.head_dim, interpreted_or_cuda) if splits else None
    output = step.attend(workspace, SMALL, padded)
    num_tokens = output.shape[0] - num_padding
    assert_close(output[:num_tokens], expected(step), layer.dtype)
    assert (output[num_tokens:] == UNTOUCHED).all()


@given(seed=SEEDS, max_query_len=st.integers(1, 64))
@settings(max_examples=10)
def test_only_a_bound_of_the_query_length_is_needed(
    seed: int, max_query_len: int, interpreted_or_cuda: torch.device
) -> None:
    step = random_step(Layer(), ((40, 1), (3, 1)), seed, interpreted_or_cuda)
    packed = replace(step.packed, max_query_len=max_query_len)
    assert_close(step.attend(packed=packed), expected(step), torch.float32)


@given(lens=DECODE_LENS, seed=SEEDS, order=st.randoms(use_true_random=False))
@settings(max_examples=8)
@pytest.mark.parametrize("splits", [False, True], ids=["whole", "in parts"])
def test_the_order_in_which_programs_begin_changes_no_bit(
    lens: Lens, seed: int, order: Random, splits: bool, interpreted_or_cuda: torch.device
) -> None:
    step = random_step(Layer(), lens, seed, interpreted_or_cuda)
    workspace = _workspace(step.layer.head_dim, interpreted_or_cuda) if splits else None
    sequences = torch.tensor(order.sample(range(len(lens)), len(lens)), device=interpreted_or_cuda)
    ordered = replace(step.packed, order=sequences)
    assert torch.equal(step.attend(workspace, SMALL, ordered), step.attend(workspace, SMALL))


def test_columns_of_a_merged_product_are_taken_as_they_lie(interpreted_or_cuda: torch.device) -> None:
    step = random_step(Layer(dtype=torch.float16), ((20, 5), (3, 1)), 3, interpreted_or_cuda)
    merged = torch.cat([torch.full_like(step.query, float("nan")), step.query], 1)
    inside = replace(step, query=merged[:, step.query.shape[1] :])
    assert_close(inside.attend(), expected(step), torch.float16)


@pytest.mark.parametrize("splits", [False, True], ids=["whole", "in parts"])
def test_the_result_may_take_the_place_of_the_query(splits: bool, interpreted_or_cuda: torch.device) -> None:
    step = random_step(Layer(), ((90, 1), (3, 20)), 3, interpreted_or_cuda)
    wanted = expected(step)
    workspace = _workspace(step.layer.head_dim, interpreted_or_cuda) if splits else None
    assert_close(step.attend(workspace, SMALL, output=step.query), wanted, torch.float32)


def test_a_group_larger_than_the_smallest_row_block_is_taken_whole(interpreted_or_cuda: torch.device) -> None:
    layer = Layer(num_kv_heads=1, group=71, head_dim=64, dtype=torch.float16)  # Falcon-7B's
    step = random_step(layer, ((30, 1), (12, 3)), 1, interpreted_or_cuda)
    assert_close(step.attend(), expected(step), layer.dtype)


def test_a_step_without_tokens_launches_nothing(interpreted_or_cuda: torch.device) -> None:
    step = random_step(Layer(), ((5, 1),), 0, interpreted_or_cuda)
    assert replace(step, query=step.query[:0]).attend().shape == (0, step.query.shape[1])


@pytest.mark.cuda
@pytest.mark.parametrize("splits", [False, True], ids=["whole", "in parts"])
@pytest.mark.parametrize("interpreted_or_cuda", ["cuda"], indirect=True)
def test_a_captured_graph_replays_for_other_lengths(splits: bool, interpreted_or_cuda: torch.device) -> None:
    layer = Layer(head_dim=64, dtype=torch.float16)
    first, second = (
        random_step(layer, lens, 5, interpreted_or_cuda)
        for lens in (((200, 1), (300, 1), (8, 1)), ((310, 1), (0, 1), (99, 1)))
    )
    width = max(step.block_tables.shape[1] for step in (first, second))
    num_blocks = max(step.key_cache.shape[0] for step in (first, second))
    table = torch.zeros(3, width, dtype=torch.int32, device=interpreted_or_cuda)
    pools = torch.zeros(2, num_blocks, *first.key_cache.shape[1:], dtype=layer.dtype, device=interpreted_or_cuda)
    static = replace(
        first, query=first.query.clone(), key_cache=pools[0], value_cache=pools[1], block_tables=table,
        context_lens=first.context_lens.clone(),
    )  # fmt: skip
    output = torch.zeros_like(static.query)
    workspace = _workspace(layer.head_dim, interpreted_or_cuda) if splits else None
    static.attend(workspace, output=output)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        static.attend(workspace, output=output)
    for step in (first, second, first):
        static.query.copy_(step.query)
        static.context_lens.copy_(step.context_lens)
        table[:, : step.block_tables.shape[1]].copy_(step.block_tables)
        for pool, source in zip(pools, (step.key_cache, step.value_cache), strict=True):
            pool[: source.shape[0]].copy_(source)
        graph.replay()
        torch.cuda.synchronize()
        assert_close(output, expected(step), layer.dtype)
