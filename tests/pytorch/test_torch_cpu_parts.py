"""Parts of the torch backend on a CPU: the norm, and the groups of a step."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from backends.pytorch.cpu_norm import CPURMSNorm
from backends.pytorch.step_groups import group_sequences
from nanovllm.batch import SAMPLING_ROW, Batch, SamplingBatch

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 0.02}
DTYPES = st.sampled_from(list(ROUNDING))


def assert_near(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    scale = float(expected.float().abs().max()) if len(expected) else 1.0
    torch.testing.assert_close(found.float(), expected.float(), atol=ROUNDING[dtype] * scale, rtol=0)


@given(rows=st.integers(0, 5), groups=st.integers(1, 3), dtype=DTYPES, eps=st.sampled_from([1e-6, 0.5]))
def test_a_norm_divides_by_the_root_of_the_mean_square_of_each_group(
    rows: int, groups: int, dtype: torch.dtype, eps: float
) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, groups * 16, generator=generator).to(dtype)
    gain = torch.rand(16, generator=generator) + 0.5
    before = x.clone()
    parts = x.double().view(rows, groups, 16)
    expected = parts / (parts.square().mean(-1, keepdim=True) + eps).sqrt() * gain.double()
    assert_near(CPURMSNorm(gain, eps, groups)(x), expected.view(x.shape), dtype)
    assert torch.equal(x, before)


@given(
    lens=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 400)), min_size=1, max_size=8),
    window=st.none() | st.integers(1, 200),
    spare_blocks=st.integers(0, 40),
)
def test_groups_cover_every_token_once_with_the_blocks_that_it_sees_and_no_later_ones(
    lens: list[tuple[int, int]], window: int | None, spare_blocks: int
) -> None:
    block_size = 16
    batch = batch_of(lens, block_size)
    owner = np.repeat(np.arange(len(lens)), [new for _, new in lens])
    seen = []
    for group in group_sequences(batch, block_size, window, spare_blocks):
        for member, rows in enumerate(group.rows.reshape(-1, group.num_queries)):
            seen += rows.tolist()
            (sequence,) = set(owner[rows].tolist())
            assert batch.positions[rows].tolist() == list(
                range(group.first_query[member], group.first_query[member] + group.num_queries)
            )
            first = int(batch.positions[rows[0]])
            oldest = 0 if window is None else max(0, first - window + 1)
            table = batch.block_tables[
                sequence, oldest // block_size : int(batch.positions[rows[-1]]) // block_size + 1
            ]
            assert group.first_key[member] == oldest // block_size * block_size
            assert group.blocks[member, : len(table)].tolist() == table.tolist()
            assert set(group.blocks[member, len(table) :].tolist()) <= {int(table[-1])}
    assert sorted(seen) == list(range(len(owner)))


def batch_of(lens: list[tuple[int, int]], block_size: int) -> Batch:
    """Sequences of (tokens in the cache, new tokens), each with blocks of its own."""
    context, new = (np.array(column) for column in zip(*lens, strict=True))
    width = int((context + new).max()) // block_size + 1
    positions = np.concatenate([np.arange(c, c + n) for c, n in lens])
    count = len(lens)
    return Batch(
        seq_ids=list(range(count)),
        released_seq_ids=[],
        token_ids=np.zeros(len(positions), np.int64),
        positions=positions,
        query_start=np.concatenate(([0], np.cumsum(new))).astype(np.int32),
        context_lens=context.astype(np.int32),
        block_tables=np.arange(count * width, dtype=np.int32).reshape(count, width),
        slot_mapping=np.zeros(len(positions), np.int32),
        logits_indices=np.zeros(0, np.int32),
        logits_start=np.zeros(count + 1, np.int32),
        adapter_ids=np.zeros(count, np.int32),
        sampling=SamplingBatch(np.zeros(0, SAMPLING_ROW), np.zeros(0, np.int64)),
    )
