"""`PagedAttention` with the Triton kernels: norms of heads and rotation fused with the write into the cache, attention
over the blocks.

In: `StepTensors`, which lie on the device. Allocates nothing and waits for nothing in a step, so that CUDA graphs can
capture it. The kernels skip slots of -1 and rows without a sequence, and never read a slot that a sequence has not
written, so what an earlier sequence left in a block, NaN included, reaches nobody.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from backends.pytorch.attention import AttendFunction, HeadGains
from backends.pytorch.step_tensors import StepTensors
from backends.pytorch.triton_kernels import PackedStep, SplitWorkspace, paged_attention, rotate_and_store
from nanovllm.architectures import AttentionSpec, Geometry, Rope
from nanovllm.errors import KVCacheError

__all__ = ["PairRotation", "PairRotations", "TritonAttention"]


class PairRotation(NamedTuple):
    """cos, sin: float32 (num_tokens, pairs), times the magnitude. interleaved: as in `Rope`."""

    cos: Tensor
    sin: Tensor
    interleaved: bool


class PairRotations:
    """Makes the rotations of a step; their frequencies stay on the device."""

    def __init__(self, ropes: Sequence[Rope], device: torch.device) -> None:
        self._ropes = [
            (rope, torch.tensor(rope.inverse_frequencies(), dtype=torch.float32, device=device)) for rope in ropes
        ]

    def __call__(self, positions: Tensor) -> list[PairRotation]:
        """One for each rope. positions: (num_tokens,). The angles are float32, as where models are trained."""
        at = positions.to(torch.float32)[:, None]
        rotations = []
        for rope, frequencies in self._ropes:
            angles = at * frequencies  # (num_tokens, pairs)
            cos, sin = angles.cos() * rope.magnitude, angles.sin() * rope.magnitude
            rotations.append(PairRotation(cos, sin, rope.interleaved))
        return rotations


class _Plan(NamedTuple):
    packed: PackedStep
    slot_mapping: Tensor


class TritonAttention:
    """A `PagedAttention`; one pool a layer. num_processors: of the device, for the division of long sequences."""

    def __init__(self, geometry: Geometry, dtype: torch.dtype, device: torch.device, *, num_processors: int) -> None:
        self._geometry = geometry
        self._dtype = dtype
        self._device = device
        self._num_processors = num_processors
        self._pools: list[Tensor] = []
        self._workspace: SplitWorkspace | None = None

    @property
    def is_allocated(self) -> bool:
        return bool(self._pools)

    def allocate(self, num_blocks: int, block_size: int) -> None:
        """Raises `KVCacheError` for a block size that is no power of two."""
        self.free()
        if block_size.bit_count() != 1:
            raise KVCacheError(
                f"block_size is {block_size}; on this device it must be a power of two, such as 16 or 32. Set one of "
                "these, or leave block_size out."
            )
        g = self._geometry
        shape = (2, num_blocks, block_size, g.num_kv_heads, g.head_dim)
        self._pools = [torch.zeros(shape, dtype=self._dtype, device=self._device) for _ in range(g.num_layers)]
        self._workspace = SplitWorkspace.allocate(g.head_dim, self._num_processors, self._device)

    def free(self) -> None:
        self._pools = []
        self._workspace = None

    def plan(self, step: StepTensors) -> _Plan:
        order = step.context_lens.argsort(descending=True) if step.max_query_len == 1 else None
        packed = PackedStep(step.query_start, step.context_lens, step.block_tables, step.max_query_len, order)
        return _Plan(packed, step.slot_mapping)

    def attend(
        self,
        plan: _Plan,
        spec: AttentionSpec,
        rotation: PairRotation | None,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        gains: HeadGains | None = None,
    ) -> Tensor:
        """As in `PagedAttention`; the result takes the place of the query. gains: of norms of the heads."""
        keys, values = self._pools[spec.layer]
        cos, sin, interleaved = rotation or (None, None, False)
        rotate_and_store(
            query, key, value, keys, values, plan.slot_mapping,
            num_heads=spec.num_heads, cos=cos, sin=sin, interleaved=interleaved, gains=gains,
        )  # fmt: skip
        paged_attention(
            query, keys, values, query, plan.packed,
            scale=spec.scale, window=spec.window, softcap=spec.softcap, workspace=self._workspace,
        )  # fmt: skip
        return query

    def attend_normed(self, gains: HeadGains) -> AttendFunction:
        return partial(self.attend, gains=gains)
