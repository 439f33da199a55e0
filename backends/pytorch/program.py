"""A decoder as a list of bound operations: recorded once from the architecture, run for every step.

An architecture describes itself by calling `Ops`; to do so anew for every step would cost as much host time as small
models take to compute. Values are numbered places; a place is emptied after its last use, so that memory is reused.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Instruction", "Program", "StepInputs", "Values"]


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What operations read beside their inputs. token_ids, positions: int64 (num_tokens,). wanted: int64 (num_logits,),
    rows whose logits are wanted. rotations: one for each of the program's ropes, as `PagedAttention.attend` takes it.
    attention_plan: see `PagedAttention.plan`."""

    token_ids: Tensor
    positions: Tensor
    wanted: Tensor
    rotations: Sequence[Any]
    attention_plan: Any


Operation = Callable[..., tuple[Tensor, ...]]
"""(step, *inputs) -> outputs."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """operation: what is called. inputs, outputs: places of its values."""

    operation: Operation
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


Values = dict[int, Tensor]
"""Values by their place."""


class Program:
    """Runs whole (`run`), or as `body` and `head`, of which the first knows nothing of the wanted rows.

    instructions: in order. result: place of the logits. last_write: index of the instruction after which all keys and
    values are written, so that a step that wants no logits may stop there. head: index of the instruction that takes
    the wanted rows. is_static: whether no operation looks at values on the host, so that a graph can capture the body.
    """

    def __init__(
        self, instructions: Sequence[Instruction], result: int, *, last_write: int, head: int, is_static: bool
    ) -> None:
        self.is_static = is_static
        self._instructions = [(i.operation, i.inputs, i.outputs) for i in instructions]
        self._last_uses = _last_uses(instructions, result)
        self._result = result
        self._last_write = last_write
        self._head = head

    def run(self, step: StepInputs) -> Tensor | None:
        """Logits of the wanted rows, (num_logits, vocab_size); None where none is wanted."""
        wants_logits = len(step.wanted) > 0
        values = self.body(step, wants_logits=wants_logits)
        return self.head(step, values) if wants_logits else None

    @torch.inference_mode()
    def body(self, step: StepInputs, *, wants_logits: bool = True) -> Values:
        """All that happens to every row, keys and values included; what `head` takes. `step.wanted` is not read."""
        values: Values = {}
        self._run(0, self._head if wants_logits else self._last_write + 1, step, values)
        return values

    @torch.inference_mode()
    def head(self, step: StepInputs, values: Values) -> Tensor:
        """Logits of the wanted rows, (num_logits, vocab_size); reads nothing of the step but `wanted`."""
        values = dict(values)
        self._run(self._head, len(self._instructions), step, values)
        return values[self._result]

    def _run(self, start: int, stop: int, step: StepInputs, values: Values) -> None:
        for index in range(start, stop):
            operation, inputs, outputs = self._instructions[index]
            results = operation(step, *[values[i] for i in inputs])
            values.update(zip(outputs, results, strict=True))
            for place in self._last_uses[index]:
                del values[place]


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
