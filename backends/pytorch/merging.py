"""Passes over a recorded program: a norm becomes one operation with the addition whose sum it reads, and norms of heads
one with the attention that reads them.

In: instructions in order. Out: the same values from fewer of them. A sum stays a value, because more than the norm
reads it; normed heads do not, where nothing but attention reads them. Knows nothing of architectures; a device that has
no such operation keeps its instructions as they are.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from backends.pytorch.attention import AttendFunction, HeadGains
from backends.pytorch.operations import Add, AddAndNorm, Attend, RMSNorm
from backends.pytorch.pointwise import PointwiseOps
from backends.pytorch.program import Instruction

__all__ = ["merge_head_norms", "merge_norms"]


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


def merge_head_norms(instructions: Sequence[Instruction]) -> list[Instruction]:
    """Attention takes in the norms of its queries and keys."""
    makers = {place: index for index, made in enumerate(instructions) for place in made.outputs}
    num_readers = Counter(place for made in instructions for place in made.inputs)
    merged: list[Instruction | None] = list(instructions)
    for index, instruction in enumerate(instructions):
        attend = instruction.operation
        if not isinstance(attend, Attend):
            continue
        *normed, value = instruction.inputs
        norms = [instructions[makers[place]] for place in normed]
        sources = [place for norm in norms for place in norm.inputs]
        compute = _attend_normed(attend, norms)
        if compute is None or any(num_readers[place] != 1 for place in (*normed, *sources)):
            continue  # attention may write to the query
        merged[index] = replace(instruction, operation=replace(attend, compute=compute), inputs=(*sources, value))
        for place in normed:
            merged[makers[place]] = None
    return [instruction for instruction in merged if instruction is not None]


def _attend_normed(attend: Attend, norms: Sequence[Instruction]) -> AttendFunction | None:
    """The function of attention that norms heads as `norms` do; None where there is none, or they do something else."""
    query, key = (norm.operation for norm in norms)
    if not isinstance(query, RMSNorm) or not isinstance(key, RMSNorm) or query.eps != key.eps:
        return None
    if (query.groups, key.groups) != (attend.spec.num_heads, attend.spec.num_kv_heads):
        return None
    return attend.attention.attend_normed(HeadGains(query.gain, key.gain, query.eps))
