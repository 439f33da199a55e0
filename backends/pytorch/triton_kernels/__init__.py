"""Triton kernels of the torch backend: rotation with the write into the KV cache, paged attention, sampling.

In: torch tensors on one device, packed and ragged as in `nanovllm.batch`. Out: written into tensors of the caller.
Knows nothing of models, schedulers or streams. Importing it needs no Triton; the first launch does.
"""

from backends.pytorch.triton_kernels.kv_store import rotate_and_store
from backends.pytorch.triton_kernels.paged_attention import PackedStep, paged_attention
from backends.pytorch.triton_kernels.sampling import draw_tokens
from backends.pytorch.triton_kernels.splits import SplitWorkspace
from backends.pytorch.triton_kernels.tiling import Tiling, tiling_for

__all__ = ["PackedStep", "SplitWorkspace", "Tiling", "draw_tokens", "paged_attention", "rotate_and_store", "tiling_for"]
