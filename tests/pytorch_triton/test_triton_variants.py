"""Kernels are compiled before a model serves: no step needs one that warming up has not asked for."""

import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.pytorch.step_limits import StepLimits, warm_up_steps
from backends.pytorch.triton_kernels import PackedStep, SplitWorkspace, paged_attention
from backends.pytorch.triton_kernels.device_code import DeviceCode

LIMITS = StepLimits(max_num_seqs=256, max_num_batched_tokens=16_384, max_num_logits=512, max_model_len=4096)
META = torch.device("meta")
HEADS = [(8, 2, 128), (2, 7, 64), (1, 71, 64), (32, 1, 96), (128, 1, 64)]  # KV heads, group, head_dim
Variant = frozenset[tuple[str, Any]]


class Launches:
    """In the place of a kernel: keeps the constants of what is launched."""

    def __init__(self) -> None:
        self.variants: set[Variant] = set()

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *_, **constants: self.variants.add(frozenset(constants.items()))


def variants(heads: tuple[int, int, int], steps: list[tuple[list[int], int]], block_size: int) -> set[Variant]:
    """Those that `steps` launch: new tokens of the sequences, and the width of the block tables."""
    num_kv_heads, group, head_dim = heads
    launches = Launches()
    with pytest.MonkeyPatch.context() as patch:
        kernels = DeviceCode(**dict.fromkeys(DeviceCode._fields, launches))
        patch.setattr(sys.modules[paged_attention.__module__], "device_code", lambda: kernels)
        pools = torch.empty(2, 1, block_size, num_kv_heads, head_dim, dtype=torch.bfloat16, device=META)
        workspace = SplitWorkspace.allocate(head_dim, 132, META)
        for lens, width in steps:
            query = torch.empty(sum(lens), num_kv_heads * group * head_dim, dtype=torch.bfloat16, device=META)
            starts, contexts, tables = (
                torch.empty(shape, dtype=torch.int32, device=META)
                for shape in ((len(lens) + 1,), (len(lens),), (len(lens), width))
            )
            step = PackedStep(starts, contexts, tables, max(lens))
            paged_attention(query, *pools, query, step, scale=0.1, workspace=workspace)
    return launches.variants


@given(
    heads=st.sampled_from(HEADS),
    block_size=st.sampled_from([16, 32, 256]),
    lens=st.lists(st.sampled_from([1, 1, 1, 1, 2, 3, 7, 20, 64, 65, 500]), min_size=1, max_size=256),
    share=st.floats(0.01, 1),
)
@settings(max_examples=60)
def test_no_step_needs_a_kernel_that_was_not_warmed_up(
    heads: tuple[int, int, int], block_size: int, lens: list[int], share: float
) -> None:
    widest = LIMITS.max_model_len // block_size
    warm = [([step.num_tokens], step.block_tables.shape[1]) for step in warm_up_steps(LIMITS, widest)]
    width = max(int(share * widest), -(-max(lens) // block_size))
    assert variants(heads, [(lens, width)], block_size) <= variants(heads, warm, block_size)


def test_there_are_few_kernels() -> None:
    widest = LIMITS.max_model_len // 32
    warm = [([step.num_tokens], step.block_tables.shape[1]) for step in warm_up_steps(LIMITS, widest)]
    of_rows, whole_or_in_parts, of_parts = 4, 2, 1
    assert len(variants((8, 2, 128), warm, 32)) == (1 + of_rows) * whole_or_in_parts + of_parts


@given(max_model_len=st.integers(1, 300), block_size=st.sampled_from([1, 4, 16, 256]))
def test_every_token_of_a_warming_step_is_within_its_table_and_the_model(max_model_len: int, block_size: int) -> None:
    limits = StepLimits(max_num_seqs=1, max_num_batched_tokens=1, max_num_logits=1, max_model_len=max_model_len)
    for step in warm_up_steps(limits, -(-max_model_len // block_size)):
        assert step.num_tokens <= min(step.block_tables.shape[1] * block_size, max_model_len)
