"""Random steps for the kernels, and what they must come to, in float64. Knows nothing of Triton."""

import math
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from backends.pytorch.triton_kernels import PackedStep, SplitWorkspace, Tiling, paged_attention

TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
UNTOUCHED = 77.0


@dataclass(frozen=True)
class Layer:
    num_kv_heads: int = 2
    group: int = 3
    head_dim: int = 16
    block_size: int = 16
    window: int | None = None
    softcap: float | None = None
    dtype: torch.dtype = torch.float32

    @property
    def num_heads(self) -> int:
        return self.num_kv_heads * self.group

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5


@dataclass(frozen=True)
class Step:
    """lens: (context, new tokens) of each sequence. Every slot that no sequence owns holds NaN."""

    layer: Layer
    lens: tuple[tuple[int, int], ...]
    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    query_start: Tensor
    context_lens: Tensor
    block_tables: Tensor

    @property
    def packed(self) -> PackedStep:
        longest = max(new for _, new in self.lens)
        return PackedStep(self.query_start, self.context_lens, self.block_tables, longest)

    def attend(
        self,
        workspace: SplitWorkspace | None = None,
        tiling: Tiling | None = None,
        packed: PackedStep | None = None,
        output: Tensor | None = None,
    ) -> Tensor:
        output = torch.full_like(self.query, UNTOUCHED) if output is None else output
        paged_attention(
            self.query, self.key_cache, self.value_cache, output, packed or self.packed, scale=self.layer.scale,
            window=self.layer.window, softcap=self.layer.softcap, workspace=workspace, tiling=tiling,
        )  # fmt: skip
        return output

    def alone(self, index: int) -> "Step":
        """The same sequence, of the same pools, without the others."""
        first, stop = self.query_start[index], self.query_start[index + 1]
        return replace(
            self,
            lens=(self.lens[index],),
            query=self.query[first:stop],
            query_start=self.query_start[[index, index + 1]] - first,
            context_lens=self.context_lens[index : index + 1],
            block_tables=self.block_tables[index : index + 1],
        )


def random_step(
    layer: Layer, lens: tuple[tuple[int, int], ...], seed: int, device: torch.device, *, num_padding: int = 0
) -> Step:
    """num_padding: rows of the query past the last sequence's tokens."""
    generator = torch.Generator().manual_seed(seed)
    totals = [context + new for context, new in lens]
    num_blocks = [-(-total // layer.block_size) for total in totals]
    order = torch.randperm(sum(num_blocks) + 2, generator=generator, dtype=torch.int32)
    pools = torch.full((2, len(order), layer.block_size, layer.num_kv_heads, layer.head_dim), math.nan)
    # A width that tells 0 from a block that is in use: entries past the length name blocks full of NaN.
    tables = torch.full((len(lens), max(num_blocks) + 1), int(order[-1]), dtype=torch.int32)
    first = 0
    for index, (total, count) in enumerate(zip(totals, num_blocks, strict=True)):
        tables[index, :count] = order[first : first + count]
        first += count
        slots = torch.arange(total)
        blocks = tables[index][slots // layer.block_size].long()
        written = torch.randn(2, total, layer.num_kv_heads, layer.head_dim, generator=generator)
        pools[:, blocks, slots % layer.block_size] = written
    starts = torch.tensor([0, *(new for _, new in lens)]).cumsum(0)
    query = torch.randn(int(starts[-1]) + num_padding, layer.num_heads * layer.head_dim, generator=generator)
    keys, values = pools.to(device, layer.dtype)
    return Step(
        layer, lens, query.to(device, layer.dtype), keys, values, starts.to(device, torch.int32),
        torch.tensor([context for context, _ in lens], dtype=torch.int32, device=device), tables.to(device),
    )  # fmt: skip


def expected(step: Step) -> Tensor:
    """float64 (num_tokens, num_heads * head_dim) on the CPU: full scores, a mask and a softmax for each sequence."""
    layer = step.layer
    results = []
    for index, (context, new) in enumerate(step.lens):
        slots = torch.arange(context + new)
        blocks = step.block_tables[index].cpu()[slots // layer.block_size].long()
        keys, values = (
            pool.cpu().double()[blocks, slots % layer.block_size].repeat_interleave(layer.group, 1)
            for pool in (step.key_cache, step.value_cache)
        )  # (context + new, num_heads, head_dim)
        first = int(step.query_start[index])
        queries = step.query[first : first + new].cpu().double().view(new, layer.num_heads, layer.head_dim)
        scores = torch.einsum("qhd,khd->hqk", queries, keys) * layer.scale
        if layer.softcap is not None:
            scores = layer.softcap * torch.tanh(scores / layer.softcap)
        distance = (context + torch.arange(new))[:, None] - slots[None, :]
        seen = (distance >= 0) & (distance < (layer.window or 2**31))
        weights = torch.where(seen, scores, -math.inf).softmax(-1)
        results.append(torch.einsum("hqk,khd->qhd", weights, values).flatten(1))
    return torch.cat(results)


def assert_close(actual: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(actual.cpu().double(), wanted.cpu().double(), rtol=tolerance, atol=tolerance)


SEEDS = st.integers(0, 2**31 - 1)
LENS = st.lists(st.tuples(st.integers(0, 70), st.one_of(st.just(1), st.integers(1, 40))), min_size=1, max_size=4).map(
    tuple
)
DECODE_LENS = st.lists(st.tuples(st.integers(0, 120), st.just(1)), min_size=1, max_size=4).map(tuple)
TILINGS = st.builds(
    Tiling, rows=st.sampled_from([16, 32]), keys=st.sampled_from([16, 32]), num_warps=st.just(4), num_stages=st.just(2)
)


@st.composite
def layers(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float16, torch.bfloat16)) -> Layer:
    """All that a kernel may depend on; groups up to the rows of the smallest tiling."""
    return Layer(
        num_kv_heads=draw(st.integers(1, 3)),
        group=draw(st.sampled_from([1, 2, 3, 7, 16])),
        head_dim=draw(st.sampled_from([8, 16, 20, 64, 80])),
        block_size=draw(st.sampled_from([4, 16, 32])),
        window=draw(st.none() | st.integers(1, 60)),
        softcap=draw(st.none() | st.floats(0.5, 30)),
        dtype=draw(st.sampled_from(dtypes)),
    )
