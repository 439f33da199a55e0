"""Operations of a program that are told apart after they were recorded: by `merging`, and by where a step may stop.

All others are plain functions. See `program.Operation`.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from backends.pytorch.attention import AttendFunction, PagedAttention
from backends.pytorch.pointwise import Function, NormedSum
from backends.pytorch.program import StepInputs
from nanovllm.architectures import AttentionSpec

__all__ = ["Add", "AddAndNorm", "Attend", "RMSNorm", "WantedRows"]


class Add:
    """a + b."""

    def __call__(self, _: StepInputs, a: Tensor, b: Tensor) -> tuple[Tensor]:
        return (a + b,)


@dataclass(frozen=True, slots=True, eq=False)
class RMSNorm:
    """gain, eps, groups: what `compute` was made of; see `PointwiseOps.rms_norm`."""

    gain: Tensor
    eps: float
    groups: int
    compute: Function

    def __call__(self, _: StepInputs, x: Tensor) -> tuple[Tensor]:
        return (self.compute(x),)


@dataclass(frozen=True, slots=True)
class AddAndNorm:
    """The sum of two values, and its norm."""

    compute: NormedSum

    def __call__(self, _: StepInputs, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.compute(a, b)


@dataclass(frozen=True, slots=True)
class Attend:
    """Writes keys and values and attends. rope: index of the step's rotation; None for none. compute: a function of
    `attention`."""

    attention: PagedAttention[Any]
    spec: AttentionSpec
    rope: int | None
    compute: AttendFunction

    def __call__(self, step: StepInputs, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor]:
        rotation = None if self.rope is None else step.rotations[self.rope]
        return (self.compute(step.attention_plan, self.spec, rotation, query, key, value),)


class WantedRows:
    """Only the rows whose logits are wanted."""

    def __call__(self, step: StepInputs, x: Tensor) -> tuple[Tensor]:
        return (x.index_select(0, step.wanted),)
