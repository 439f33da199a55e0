"""Additions and norms that are merged give the values that they gave apart."""

from dataclasses import dataclass

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from backends.pytorch.merging import merge_norms
from backends.pytorch.operations import Add, AddAndNorm, RMSNorm
from backends.pytorch.pointwise import CPUPointwise, NormedSum
from backends.pytorch.program import Instruction, Program, StepInputs

STEP = StepInputs(*torch.zeros(3, 1, dtype=torch.int64), rotations=[], attention_plan=None)
GAIN = torch.tensor([0.5, 2.0, 1.0, 3.0])


class NormsOfSums(CPUPointwise):
    """A device that norms a sum in the operation that makes it."""

    def normed_sum(self, gain: Tensor, eps: float) -> NormedSum:
        norm = self.rms_norm(gain, eps, 1)
        return lambda a, b: (a + b, norm(a + b))


@dataclass(frozen=True)
class Source:
    """The first value."""

    value: float

    def __call__(self, _: StepInputs) -> tuple[Tensor]:
        return (torch.arange(8.0).view(2, 4) + self.value,)


@st.composite
def chains(draw: st.DrawFn) -> list[Instruction]:
    """Additions, norms of rows and of halves of rows, each of values before it."""
    instructions = [Instruction(Source(draw(st.floats(-3, 3))), (), (0,))]
    for place in range(1, draw(st.integers(2, 12))):
        earlier = st.integers(0, place - 1)
        groups = draw(st.sampled_from([0, 1, 1, 2]))
        if groups:
            gain = GAIN[: 4 // groups]
            norm = RMSNorm(gain, 1e-6, groups, CPUPointwise().rms_norm(gain, 1e-6, groups))
            instructions.append(Instruction(norm, (draw(earlier),), (place,)))
        else:
            instructions.append(Instruction(Add(), (draw(earlier), draw(earlier)), (place,)))
    return instructions


def results(instructions: list[Instruction], places: range) -> list[Tensor]:
    def result(place: int) -> Tensor:
        program = Program(instructions, place, last_write=0, head=0, is_static=True)
        value = program.run(STEP)
        assert value is not None
        return value

    return [result(place) for place in places]


@given(chain=chains())
def test_every_value_is_what_it_was(chain: list[Instruction]) -> None:
    merged = merge_norms(chain, NormsOfSums())
    places = range(len(chain))
    for found, expected in zip(results(merged, places), results(chain, places), strict=True):
        assert torch.equal(found, expected)


@given(chain=chains())
def test_of_the_norms_of_a_sum_one_is_merged_with_it(chain: list[Instruction]) -> None:
    makers = {made.outputs[0]: made for made in chain}
    norms = [made for made in chain if isinstance(made.operation, RMSNorm) and made.operation.groups == 1]
    sums = {norm.inputs for norm in norms if isinstance(makers[norm.inputs[0]].operation, Add)}
    merged = merge_norms(chain, NormsOfSums())
    assert len(merged) == len(chain) - len(sums)
    assert sum(isinstance(made.operation, AddAndNorm) for made in merged) == len(sums)


@given(chain=chains())
def test_where_nothing_is_gained_all_stays_as_it_is(chain: list[Instruction]) -> None:
    assert merge_norms(chain, CPUPointwise()) == chain
