"""A pass over a recorded program: a norm and the addition whose sum it reads become one operation.

In: instructions in order. Out: the same values from fewer of them. The sum stays a value, because more than the norm
reads it. Knows nothing of architectures; a device that has no such operation keeps its instructions as they are.
"""

from collections.abc import Sequence
from dataclasses import replace

from backends.pytorch.operations import Add, AddAndNorm, RMSNorm
from backends.pytorch.pointwise import PointwiseOps
from backends.pytorch.program import Instruction

__all__ = ["merge_norms"]


def merge_norms(instructions: Sequence[Instruction], pointwise: PointwiseOps) -> list[Instruction]:
    """Each norm of whole rows takes the place of the addition before it; of several norms of a sum, the first does."""
    makers = {place: index for index, made in enumerate(instructions) for place in made.outputs}
    merged: list[Instruction | None] = list(instructions)
    for index, instruction in enumerate(instructions):
        norm = instruction.operation
        if not isinstance(norm, RMSNorm) or norm.groups != 1:
            continue
        maker = makers[instruction.inputs[0]]
        addition = merged[maker]
        compute = pointwise.normed_sum(norm.gain, norm.eps)
        if addition is None or not isinstance(addition.operation, Add) or compute is None:
            continue
        outputs = (*addition.outputs, *instruction.outputs)
        merged[maker] = replace(addition, operation=AddAndNorm(compute), outputs=outputs)
        merged[index] = None
    return [instruction for instruction in merged if instruction is not None]
