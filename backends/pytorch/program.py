"""A decoder as a list of bound operations: recorded once from the architecture, run for every step.

An architecture describes itself by calling `Ops`; to do so anew for every step would cost as much host time as small
models take to compute. Values are numbered places; a place is emptied after its last use, so that memory is reused.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backends.pytorch.rotary import Rotation

__all__ = ["Instruction", "Program", "StepInputs"]


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What operations read beside their inputs. token_ids, positions: int64 (num_tokens,). wanted: int64 (num_logits,),
    rows whose logits are wanted. rotations: one for each of the program's ropes. attention_plan: see
    `PagedAttention.plan`."""

    token_ids: Tensor
    positions: Tensor
    wanted: Tensor
    rotations: Sequence[Rotation]
    attention_plan: Any


Operation = Callable[..., tuple[Tensor, ...]]
"""(step, *inputs) -> outputs."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """operation: what is called. inputs, outputs: places of its values."""

    operation: Operation
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class Program:
    """instructions: in order. result: place of the logits. last_write: index of the instruction after which all keys
    and values are written, so that a step that wants no logits may stop there."""

    def __init__(self, instructions: Sequence[Instruction], result: int, last_write: int) -> None:
        self._instructions = [(i.operation, i.inputs, i.outputs) for i in instructions]
        self._last_uses = _last_uses(instructions, result)
        self._result = result
        self._last_write = last_write

    @torch.inference_mode()
    def run(self, step: StepInputs) -> Tensor | None:
        """Logits of the wanted rows, (num_logits, vocab_size); None where none is wanted."""
        places: dict[int, Tensor] = {}
        is_wanted = len(step.wanted) > 0
        for index, (operation, inputs, outputs) in enumerate(self._instructions):
            results = operation(step, *[places[i] for i in inputs])
            if index == self._last_write and not is_wanted:
                return None
            places.update(zip(outputs, results, strict=True))
            for place in self._last_uses[index]:
                del places[place]
        return places[self._result]


def _last_uses(instructions: Sequence[Instruction], result: int) -> list[list[int]]:
    """By instruction, the places that nobody reads after it."""
    last: dict[int, int] = {}
    for index, instruction in enumerate(instructions):
        for place in (*instruction.inputs, *instruction.outputs):
            last[place] = index
    uses: list[list[int]] = [[] for _ in instructions]
    for place, index in last.items():
        if place != result:
            uses[index].append(place)
    return uses
