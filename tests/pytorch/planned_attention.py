"""Torch's own attention behind the border of a device runner: quick enough for laws of many steps on a CPU."""

import numpy as np
import torch
from torch import Tensor

from backends.pytorch.attention import HeadGains
from backends.pytorch.cpu_attention import CPUAttention
from backends.pytorch.rotary import Rotation, rotation
from backends.pytorch.step_tensors import StepTensors
from nanovllm.architectures import AttentionSpec, Rope
from nanovllm.batch import SAMPLING_ROW, Batch, SamplingBatch

__all__ = ["PlannedAttention", "planned_rotations"]

Rotations = list[Rotation]


def planned_rotations(ropes: list[Rope], device: torch.device) -> "_Rotations":
    return _Rotations(ropes)


class _Rotations:
    def __init__(self, ropes: list[Rope]) -> None:
        self._ropes = ropes

    def __call__(self, positions: Tensor) -> Rotations:
        return [rotation(rope, positions) for rope in self._ropes]


class PlannedAttention:
    """Reads the step back from the tensors; rows that belong to no sequence get zeros."""

    def __init__(self, inner: CPUAttention) -> None:
        self._inner = inner

    @property
    def is_allocated(self) -> bool:
        return self._inner.is_allocated

    def allocate(self, num_blocks: int, block_size: int) -> None:
        self._inner.allocate(num_blocks, block_size)

    def free(self) -> None:
        self._inner.free()

    def plan(self, step: StepTensors) -> tuple[object, int]:
        """The inner plan, and the number of tokens that are not padding."""
        query_start = step.query_start.numpy().copy()
        num_seqs = int((np.diff(query_start) > 0).sum())
        num_tokens = int(query_start[-1])
        if (step.slot_mapping < 0).all():  # a step that leaves no trace: what it computes is of no matter
            num_tokens = 0
        batch = Batch(
            seq_ids=range(num_seqs),
            released_seq_ids=[],
            token_ids=step.token_ids[:num_tokens].numpy().astype(np.int64),
            positions=step.positions[:num_tokens].numpy().astype(np.int64),
            query_start=query_start[: num_seqs + 1],
            context_lens=step.context_lens[:num_seqs].numpy().copy(),
            block_tables=step.block_tables[:num_seqs].numpy().copy(),
            slot_mapping=step.slot_mapping[:num_tokens].numpy().copy(),
            logits_indices=np.zeros(0, np.int32),
            logits_start=np.zeros(num_seqs + 1, np.int32),
            adapter_ids=np.zeros(num_seqs, np.int32),
            sampling=SamplingBatch(np.zeros(0, SAMPLING_ROW), np.zeros(0, np.int64)),
        )
        assert (step.slot_mapping[num_tokens:] == -1).all(), "a token of nobody has a slot"
        return (self._inner.plan(batch) if num_tokens else None), num_tokens

    def attend(
        self,
        plan: tuple[object, int],
        spec: AttentionSpec,
        rotation: Rotation | None,
        query: Tensor,
        key: Tensor,
        value: Tensor,
    ) -> Tensor:
        inner, n = plan
        result = torch.zeros(query.shape, dtype=query.dtype)
        if rotation is not None:
            rotation = Rotation(rotation.cos[:n], rotation.sin[:n], rotation.interleaved)
        if inner is not None:
            result[:n] = self._inner.attend(inner, spec, rotation, query[:n], key[:n], value[:n])  # type: ignore[arg-type]
        return result

    def attend_normed(self, gains: HeadGains) -> None:
        """Norms are operations of their own here."""
