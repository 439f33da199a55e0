"""Launches paged attention over one layer's pools."""

from dataclasses import dataclass

import torch
from torch import Tensor

from backends.pytorch.triton_kernels.device_code import device_code
from backends.pytorch.triton_kernels.splits import MOST_SPLITS, SplitWorkspace
from backends.pytorch.triton_kernels.tiling import Tiling, head_width, tiling_for

__all__ = ["PackedStep", "paged_attention"]


@dataclass(frozen=True, slots=True)
class PackedStep:
    """Which tokens belong to which sequence, and where their keys are; the same for all layers of a step.

    query_start: int32 (num_seqs + 1,). context_lens: int32 (num_seqs,). block_tables: int32 (num_seqs, max_blocks),
    rows contiguous; entries past a sequence's length are not read. All on the device, as in `Batch`. A captured graph
    that replays for fewer sequences gives the others no tokens: query_start repeats its last value.
    max_query_len: no sequence has more new tokens, in any replay. order: int (num_seqs,), all sequences, in which order
    programs begin with them where max_query_len is 1: the longest first keeps a device busy to the end. It changes no
    result; None: as they come.
    """

    query_start: Tensor
    context_lens: Tensor
    block_tables: Tensor
    max_query_len: int
    order: Tensor | None = None


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    output: Tensor,
    step: PackedStep,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    workspace: SplitWorkspace | None = None,
    tiling: Tiling | None = None,
) -> None:
    """Every token attends to its sequence up to itself; its own key is in the pools already.

    query: (num_tokens, num_heads * head_dim), turned, float32, float16 or bfloat16; features adjacent. Rows past
    query_start[-1] are padding.
    key_cache, value_cache: (num_blocks, block_size, num_kv_heads, head_dim), contiguous, of the query's dtype;
    block_size is a power of two. output: as the query, written to but for padding; may be the query itself.
    scale, window, softcap: as in `AttentionSpec`. workspace: memory to divide long sequences among programs where
    there are few; None: they are not divided. tiling: None for what `tiling_for` says.

    Grid and arguments follow from shapes and host numbers alone, nothing is allocated and nothing waited for, so that a
    CUDA graph can capture it. Raises `ConfigError` where Triton is not installed.
    """
    _, block_size, num_kv_heads, head_dim = key_cache.shape
    num_tokens, num_seqs = query.shape[0], step.context_lens.shape[0]
    num_heads = query.shape[1] // head_dim
    group = num_heads // num_kv_heads
    _check(query, key_cache, value_cache, output, step)
    if num_tokens == 0:
        return
    if tiling is None:
        tiling = tiling_for(
            group=group, head_dim=head_dim, max_query_len=step.max_query_len, element_size=query.element_size()
        )
    one_token = step.max_query_len == 1
    row_blocks = num_seqs if one_token else num_tokens // (tiling.rows // group) + num_seqs
    num_splits = 1
    if workspace is not None:
        num_splits = workspace.num_splits(
            num_programs=row_blocks * num_kv_heads,
            num_rows=num_tokens * num_heads,
            max_keys=step.block_tables.shape[1] * block_size,
        )
    parts = (
        (None,) * 3 if workspace is None or num_splits == 1 else (workspace.partial, workspace.maxima, workspace.sums)
    )
    kernels = device_code()
    kernels.attend[(row_blocks * num_kv_heads, num_splits)](
        output, query, key_cache, value_cache, step.query_start, step.context_lens, step.block_tables, step.order,
        *parts, num_seqs, num_splits, query.stride(0), output.stride(0), step.block_tables.stride(0), float(scale),
        window or 0, float(softcap or 0),
        NUM_KV_HEADS=num_kv_heads, GROUP=group, HEAD_DIM=head_dim, WIDTH=head_width(head_dim),
        BLOCK_SIZE=block_size, ROWS=tiling.rows, KEYS=tiling.keys, IS_SPLIT=num_splits > 1, ONE_TOKEN=one_token,
        HAS_WINDOW=window is not None, HAS_SOFTCAP=softcap is not None, WIDEN=_must_widen(query),
        num_warps=tiling.num_warps, num_stages=tiling.num_stages,
    )  # fmt: skip
    if num_splits > 1:
        kernels.reduce_splits[(num_tokens, num_heads)](
            output, *parts, step.query_start, num_seqs, num_splits, output.stride(0),
            NUM_HEADS=num_heads, HEAD_DIM=head_dim, WIDTH=head_width(head_dim), MOST_SPLITS=MOST_SPLITS,
        )  # fmt: skip


def _must_widen(query: Tensor) -> bool:
    """Tensors in host memory mean Triton's interpreter, which multiplies bfloat16 as if it were integers."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16


def _check(query: Tensor, key_cache: Tensor, value_cache: Tensor, output: Tensor, step: PackedStep) -> None:
    assert query.dtype == key_cache.dtype == value_cache.dtype == output.dtype, "one dtype for query, pools and output"
    assert query.stride(1) == output.stride(1) == 1, "features must be adjacent"
    assert key_cache.is_contiguous(), "pools must be contiguous"
    assert value_cache.is_contiguous(), "pools must be contiguous"
    assert key_cache.shape[1].bit_count() == 1, "the block size must be a power of two"
    assert step.query_start.shape[0] == step.context_lens.shape[0] + 1, "query_start has one entry more than sequences"
