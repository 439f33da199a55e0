"""Both ways to exchange numbers give all ranks the same sums and rank 0 all parts, and notice a rank that has gone."""

import os
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_driver import join_ranks, on_every_rank

from backends.pytorch.parallel.collective import Collective

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


@pytest.fixture(scope="module", params=[("shared_memory", 2), ("shared_memory", 3), ("gloo", 2), ("gloo", 3)], ids=str)
def collectives(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Collective]]:
    kind, size = request.param
    collectives = join_ranks(kind, size, tmp_path_factory.mktemp("ranks"))
    yield collectives
    for collective in collectives:
        collective.leave()


def draw(seed: int, rows: int, features: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(seed)).to(dtype)


@settings(max_examples=20)
@given(seed=st.integers(0, 99), rows=st.integers(1, 70), features=st.sampled_from([1, 10, 9000]), dtype=DTYPES)
def test_all_ranks_get_the_same_sum(
    collectives: list[Collective], seed: int, rows: int, features: int, dtype: torch.dtype
) -> None:
    parts = [draw(seed + number, rows, features, dtype) for number in range(len(collectives))]
    exact = torch.stack([part.double() for part in parts]).sum(0)
    calls = [partial(c.all_reduce, part) for c, part in zip(collectives, parts, strict=True)]
    sums = on_every_rank(calls)
    assert all(torch.equal(result, sums[0]) for result in sums)
    assert sums[0].dtype == dtype
    torch.testing.assert_close(sums[0].double(), exact, atol=2e-2 if dtype != torch.float32 else 1e-5, rtol=0.02)


@settings(max_examples=20)
@given(seed=st.integers(0, 99), rows=st.integers(1, 40), features=st.sampled_from([4, 10, 60_001]), dtype=DTYPES)
def test_rank_0_gets_all_parts_and_the_others_none(
    collectives: list[Collective], seed: int, rows: int, features: int, dtype: torch.dtype
) -> None:
    whole = draw(seed, features, rows, dtype).T  # not contiguous, as the results of some products are
    calls = [partial(c.gather, whole[:, slice(*c.rank.share(features))], features) for c in collectives]
    gathered = on_every_rank(calls)
    assert torch.equal(gathered[0], whole)
    assert [tuple(part.shape) for part in gathered[1:]] == [(0, features)] * (len(collectives) - 1)


@settings(max_examples=6)
@given(size=st.sampled_from([1, 7, 300_001]))
def test_all_ranks_get_what_rank_0_has(collectives: list[Collective], size: int) -> None:
    ids = [torch.arange(size, dtype=torch.int32) - number for number in range(len(collectives))]
    expected = ids[0].clone()
    received = on_every_rank([partial(c.broadcast, mine) for c, mine in zip(collectives, ids, strict=True)])
    assert all(torch.equal(mine, expected) for mine in received)


def test_many_sums_in_a_row_do_not_mix(collectives: list[Collective]) -> None:
    def add_up(collective: Collective) -> list[float]:
        return [float(collective.all_reduce(torch.full((1, 7), float(i)))[0, 3]) for i in range(300)]

    expected = [float(i * len(collectives)) for i in range(300)]
    assert on_every_rank([partial(add_up, collective) for collective in collectives]) == [expected] * len(collectives)


def test_nobody_but_this_machine_can_reach_the_store_where_ranks_meet(tmp_path: Path) -> None:
    """Linux has all of 127.0.0.0/8: what listens on every interface is found at each of these addresses."""
    collectives = join_ranks("gloo", 2, tmp_path)
    port = int((tmp_path / "port").read_text())
    socket.create_connection(("127.0.0.1", port), timeout=1).close()
    with pytest.raises(OSError, match=r"refused|timed out|assign"):
        socket.create_connection(("127.0.0.2", port), timeout=1)
    for collective in collectives:
        collective.leave()


def test_a_rank_that_has_gone_is_noticed_and_leaving_twice_is_no_error(tmp_path: Path) -> None:
    staying, going = join_ranks("shared_memory", 2, tmp_path)
    going.leave()
    going.leave()
    with pytest.raises(RuntimeError, match="rank 1 has ended"):
        staying.all_reduce(torch.ones(1, 4))
    num_files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    staying.leave()
    assert num_files is None or len(os.listdir("/proc/self/fd")) < num_files
