"""What the ranks have is the model once: nothing is missing, nothing twice but what is meant to be."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backends.pytorch.cpu_attention import CPUAttention
from backends.pytorch.linear import LinearLayer, make_linear
from backends.pytorch.ops import record
from backends.pytorch.parallel.collective import Collective
from backends.pytorch.parallel.division import Rank, column_part, geometry_part, row_part
from backends.pytorch.parallel.group_collective import GroupCollective
from backends.pytorch.pointwise import CPUPointwise
from backends.pytorch.weights import Weights
from nanovllm.architectures import Linear, Shard, Stored, Weight
from nanovllm.checkpoint import Checkpoint
from nanovllm.checkpoint_decoder import read_decoder
from nanovllm.errors import ConfigError
from nanovllm.random_weights import RandomCheckpoint
from nanovllm.testing import tiny_config, write_checkpoint
from tests.architectures.family_configs import CASES, Case

SIZES = st.integers(1, 8)
CPU = torch.device("cpu")
TABLE = (211, 48)


def ranks(size: int) -> list[Rank]:
    return [Rank(number, size) for number in range(size)]


@given(SIZES, st.integers(1, 500))
def test_shares_lie_one_after_the_other_and_differ_by_one_at_most(size: int, total: int) -> None:
    shares = [rank.share(total) for rank in ranks(size)]
    assert [share[0] for share in shares[:1]] == [0]
    assert shares[-1][1] == total
    assert all(a[1] == b[0] for a, b in pairwise(shares))
    lengths = [stop - start for start, stop in shares]
    assert max(lengths) - min(lengths) <= 1


@given(SIZES, st.integers(1, 4), st.integers(1, 4))
def test_every_query_head_meets_its_kv_head(size: int, kv_per_rank: int, group: int) -> None:
    for num_kv_heads in (size * kv_per_rank, *(n for n in range(1, size) if size % n == 0)):
        num_heads = num_kv_heads * group * size
        for rank in ranks(size):
            first, last = rank.share(num_heads)
            kv_first, kv_last = rank.heads(num_kv_heads)
            whole = [head * num_kv_heads // num_heads for head in range(first, last)]
            here = [kv_first + i * (kv_last - kv_first) // (last - first) for i in range(last - first)]
            assert here == whole


@pytest.mark.parametrize(
    ("size", "num_heads", "num_kv_heads", "message"),
    [
        (4, 6, 2, "tensor_parallel_size is 4, and the model has 6 heads;"),
        (3, 6, 2, "tensor_parallel_size is 3, and the model has 2 heads of keys and values"),
    ],
)
def test_heads_that_cannot_be_divided_are_refused_with_both_numbers(
    tmp_path: Path, size: int, num_heads: int, num_kv_heads: int, message: str
) -> None:
    config = tiny_config(num_attention_heads=num_heads, num_key_value_heads=num_kv_heads)
    decoder = read_decoder(Checkpoint(write_checkpoint(tmp_path / "model", config)), None)
    with pytest.raises(ConfigError, match=message):
        geometry_part(decoder.geometry, Rank(0, size))


RANGES = st.lists(st.integers(0, 60), min_size=2, max_size=8, unique=True).map(
    lambda ends: tuple(pairwise(sorted(ends)))[::2]
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(write_checkpoint(tmp_path_factory.mktemp("model"), dtype="float32"))


@given(SIZES, RANGES, st.booleans(), st.booleans())
def test_parts_of_a_layer_put_together_are_the_layer(
    checkpoint: Checkpoint, size: int, ranges: tuple[tuple[int, int], ...], transposed: bool, whole: bool
) -> None:
    weights = Weights(checkpoint, torch.float32, CPU)
    name, num_rows = "model.embed_tokens.weight", sum(stop - start for start, stop in ranges)
    if transposed:
        ranges = tuple((start * 48 // 60, stop * 48 // 60) for start, stop in ranges)
        num_rows = sum(stop - start for start, stop in ranges)
        weight = Weight(name, (num_rows, 211), Stored(TABLE, ranges, transposed=True))
    else:
        weight = Weight(name, TABLE) if whole else Weight(name, (num_rows, 48), Stored(TABLE, ranges))
    layer, expected = Linear(weight), weights.merged([weight])
    columns = [weights.merged([column_part(layer, rank).weight]) for rank in ranks(size)]
    assert torch.equal(torch.cat(columns), expected)
    rows = [weights.merged([row_part(layer, rank).weight]) for rank in ranks(size)]
    assert torch.equal(torch.cat(rows, 1), expected)


def test_parts_of_weights_that_lie_in_no_file() -> None:
    weights = Weights(RandomCheckpoint(tiny_config()), torch.float32, CPU)
    layer = Linear(Weight("weight", (40, 30)))
    for part, axis in ((column_part, 0), (row_part, 1)):
        parts = [weights.merged([part(layer, rank).weight]) for rank in ranks(3)]
        assert torch.equal(torch.cat(parts, axis), weights.merged([layer.weight]))


def test_only_one_rank_adds_the_bias_of_a_sum() -> None:
    layer = Linear(Weight("weight", (4, 6)), Weight("bias", (4,)))
    assert [row_part(layer, rank).bias for rank in ranks(3)] == [layer.bias, None, None]
    biases = [column_part(layer, rank).bias for rank in ranks(3)]
    assert sum(bias.shape[0] for bias in biases if bias is not None) == 4


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_rank_holds_its_share_of_the_weights(tmp_path: Path, case: Case) -> None:
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "model", case.config))
    whole = held(checkpoint, None)
    num_kv_heads = read_decoder(checkpoint, None).geometry.num_kv_heads
    halves = [held(checkpoint, GroupCollective(rank, tmp_path)) for rank in ranks(2)]
    assert abs(halves[0] - halves[1]) <= 0.02 * whole
    if num_kv_heads > 1:  # else both have the one KV head
        assert sum(halves) == whole
    assert max(halves) < 0.6 * whole


def held(checkpoint: Checkpoint, collective: Collective | None) -> int:
    """Numbers in the weights of all linear layers."""
    count = 0

    def make(weight: torch.Tensor, bias: torch.Tensor | None, shard: Shard) -> LinearLayer:
        nonlocal count
        count += weight.numel()
        return make_linear(weight, bias, shard)

    decoder = read_decoder(checkpoint, None)
    attention = CPUAttention(decoder.geometry, torch.float32, CPU)
    record(decoder, Weights(checkpoint, torch.float32, CPU), attention, make, CPUPointwise(), collective)
    return count
