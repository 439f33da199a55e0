"""Operations that are merged give the values that they gave apart."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from backends.pytorch.attention import AttendFunction, HeadGains
from backends.pytorch.merging import merge_head_norms, merge_norms
from backends.pytorch.operations import Add, AddAndNorm, Attend, RMSNorm
from backends.pytorch.pointwise import CPUPointwise, NormedSum
from backends.pytorch.program import Instruction, Program, StepInputs
from nanovllm.architectures import AttentionSpec

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


class AddedUp:
    """An attention that adds its inputs up, and norms them first where it is told to."""

    norms_heads = True

    def attend(
        self, plan: None, spec: AttentionSpec, rotation: None, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        return query + key.repeat(1, 2) + value.repeat(1, 2)

    def attend_normed(self, gains: HeadGains) -> AttendFunction | None:
        if not self.norms_heads:
            return None
        norms = [
            CPUPointwise().rms_norm(gain, gains.eps, groups) for gain, groups in ((gains.query, 2), (gains.key, 1))
        ]
        return lambda plan, spec, rotation, query, key, value: self.attend(
            plan, spec, rotation, norms[0](query), norms[1](key), value
        )


class Apart(AddedUp):
    norms_heads = False


class Split:
    """Values of 4, 2 and 2 features."""

    def __call__(self, _: StepInputs, x: Tensor) -> tuple[Tensor, ...]:
        return x.split([4, 2, 2], 1)


SPEC = AttentionSpec(layer=0, num_heads=2, num_kv_heads=1, head_dim=2, scale=1.0)


def attention(
    function: AddedUp, *, query_groups: int = 2, key_eps: float = 1e-6, second_reader: int | None = None
) -> list[Instruction]:
    """Norms of heads of a product's columns 1 and 2, and attention, the value 6. second_reader: of which place."""
    norm = CPUPointwise().rms_norm
    query_gain, key_gain = GAIN[: 4 // query_groups], GAIN[:2]
    instructions = [
        Instruction(lambda _: (torch.arange(16.0).view(2, 8) - 5,), (), (0,)),
        Instruction(Split(), (0,), (1, 2, 3)),
        Instruction(RMSNorm(query_gain, 1e-6, query_groups, norm(query_gain, 1e-6, query_groups)), (1,), (4,)),
        Instruction(RMSNorm(key_gain, key_eps, 1, norm(key_gain, key_eps, 1)), (2,), (5,)),
        Instruction(Attend(function, SPEC, None, function.attend), (4, 5, 3), (6,)),
    ]
    if second_reader is not None:
        instructions.append(Instruction(Add(), (second_reader, second_reader), (7,)))
    return instructions


def test_norms_of_heads_become_a_part_of_attention() -> None:
    instructions = attention(AddedUp())
    merged = merge_head_norms(instructions)
    assert [made.inputs for made in merged] == [(), (0,), (1, 2, 3)]
    (found,), (expected,) = results(merged, range(6, 7)), results(instructions, range(6, 7))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("place", [1, 2, 4, 5])
def test_norms_of_heads_that_something_else_reads_too_stay_apart(place: int) -> None:
    instructions = attention(AddedUp(), second_reader=place)
    assert merge_head_norms(instructions) == instructions


def test_other_norms_and_other_attention_stay_apart() -> None:
    for instructions in (
        attention(AddedUp(), query_groups=1),
        attention(AddedUp(), key_eps=0.5),
        attention(Apart()),
    ):
        assert merge_head_norms(instructions) == instructions
