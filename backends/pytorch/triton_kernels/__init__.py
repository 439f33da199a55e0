"""Triton kernels of the torch backend: rotation with the write into the KV cache, paged attention, norms and gates, and
sampling.

In: torch tensors on one device, packed and ragged as in `nanovllm.batch`. Out: written into tensors
of the caller, or new ones. Knows nothing of models, schedulers or streams. Importing it needs no Triton; the first
launch does.
"""

from backends.pytorch.triton_kernels.gate import gate
from backends.pytorch.triton_kernels.kv_store import rotate_and_store
from backends.pytorch.triton_kernels.norm import add_rms_norm, rms_norm
from backends.pytorch.triton_kernels.paged_attention import PackedStep, paged_attention
from backends.pytorch.triton_kernels.sampling import draw_tokens
from backends.pytorch.triton_kernels.splits import SplitWorkspace
from backends.pytorch.triton_kernels.tiling import Tiling, tiling_for

__all__ = [
    "PackedStep",
    "SplitWorkspace",
    "Tiling",
    "add_rms_norm",
    "draw_tokens",
    "gate",
    "paged_attention",
    "rms_norm",
    "rotate_and_store",
    "tiling_for",
]
