"""The small parts of a device runner: packed steps, slots of tokens, sizes of graphs, the share of memory."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backends.pytorch.decode_graphs import graph_sizes
from backends.pytorch.device_memory import kv_cache_bytes
from backends.pytorch.step_tensors import StepBuffers, StepShape, StepTensors
from backends.pytorch.token_slots import TokenSlots
from nanovllm.errors import BackendError

CPU = torch.device("cpu")
COUNTS = st.integers(0, 5)


@given(tokens=st.integers(1, 6), seqs=st.integers(1, 4), width=st.integers(1, 3), chosen=COUNTS, others=COUNTS)
def test_what_is_put_on_a_device_lies_there(tokens: int, seqs: int, width: int, chosen: int, others: int) -> None:
    arrays = arrays_of(tokens, seqs, width, chosen, others)
    shape = StepShape(tokens, seqs, width, chosen + others, chosen)
    step = StepBuffers(shape.num_words, CPU).put(arrays, shape, 3)
    for name, array in arrays.items():
        tensor = getattr(step, name)
        assert tensor.dtype == (torch.float64 if name == "sampling" else torch.int32)
        np.testing.assert_array_equal(tensor.numpy(), array)
    assert step.max_query_len == 3


@given(spare_tokens=st.integers(0, 4), spare_width=st.integers(0, 2), seqs=st.integers(1, 4), chosen=COUNTS)
def test_a_step_that_is_smaller_than_its_layout_is_filled_up_with_tokens_of_nobody(
    spare_tokens: int, spare_width: int, seqs: int, chosen: int
) -> None:
    arrays = arrays_of(seqs, seqs, 2, chosen, 0)
    arrays["query_start"] = np.arange(seqs + 1)
    size = seqs + spare_tokens
    step = StepBuffers(1000, CPU).put(arrays, StepShape(size, size, 2 + spare_width, chosen, chosen), 1)
    np.testing.assert_array_equal(step.token_ids[:seqs].numpy(), arrays["token_ids"])
    np.testing.assert_array_equal(step.block_tables[:seqs, :2].numpy(), arrays["block_tables"])
    assert (step.slot_mapping[seqs:] == -1).all()
    assert (step.query_start[seqs:] == seqs).all(), "a sequence of nobody has tokens"
    assert (step.token_ids[seqs:] == 0).all()


def test_steps_of_one_layout_lie_at_the_same_addresses() -> None:
    """Whatever the number of wanted rows: a captured graph finds the step where the first one was."""
    buffers = StepBuffers(1000, CPU)

    def put(num_seqs: int) -> StepTensors:
        arrays = arrays_of(num_seqs, num_seqs, 3, num_seqs, 0)
        return buffers.put(arrays, StepShape(4, 4, 5, num_seqs, num_seqs), 1)

    first, second = put(2), put(4)
    for name in ("token_ids", "positions", "slot_mapping", "query_start", "context_lens", "block_tables"):
        assert getattr(first, name).data_ptr() == getattr(second, name).data_ptr(), name


def test_a_step_beyond_the_buffers_gets_memory_of_its_own() -> None:
    buffers = StepBuffers(4, CPU)
    arrays = arrays_of(6, 2, 3, 2, 0)
    first = buffers.put(arrays, StepShape(6, 2, 3, 2, 2), 5)
    buffers.put({name: array + 1 for name, array in arrays.items()}, StepShape(6, 2, 3, 2, 2), 5)
    np.testing.assert_array_equal(first.token_ids.numpy(), arrays["token_ids"])


def arrays_of(tokens: int, seqs: int, width: int, chosen: int, others: int) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    sizes: dict[str, tuple[int, ...]] = {
        "token_ids": (tokens,),
        "positions": (tokens,),
        "slot_mapping": (tokens,),
        "query_start": (seqs + 1,),
        "context_lens": (seqs,),
        "block_tables": (seqs, width),
        "wanted": (chosen + others,),
        "chosen": (chosen,),
        "others": (others,),
        "token_slots": (chosen,),
    }
    arrays: dict[str, np.ndarray[Any, Any]] = {name: random.integers(1, 99, size) for name, size in sizes.items()}
    return {**arrays, "sampling": random.random((5, chosen))}


@given(st.lists(st.tuples(st.sets(st.integers(0, 20), max_size=4), st.sets(st.integers(0, 20), max_size=8))))
def test_sequences_keep_their_slots_and_never_share_one(steps: list[tuple[set[int], set[int]]]) -> None:
    slots = TokenSlots(21)
    held: dict[int, int] = {}
    for released, members in steps:
        slots.release(released)
        for seq_id in released:
            held.pop(seq_id, None)
        given_now = dict(zip(members, slots.of(list(members)).tolist(), strict=True))
        assert all(held.get(seq_id, slot) == slot for seq_id, slot in given_now.items())
        held.update(given_now)
        assert len(set(held.values())) == len(held)
        assert all(0 <= slot < slots.spare for slot in held.values())


def test_more_sequences_than_slots_are_an_error_and_releasing_one_helps() -> None:
    slots = TokenSlots(2)
    slots.of([1, 2])
    with pytest.raises(BackendError, match="3 sequences are unfinished; at most 2 may be"):
        slots.of([3])
    slots.release([1])
    slots.of([2, 3])


def test_graphs_come_in_the_sizes_of_small_batches_and_multiples_of_eight() -> None:
    assert graph_sizes(1) == [1]
    assert graph_sizes(3) == [1, 2, 3]
    assert graph_sizes(8) == [1, 2, 4, 8]
    assert graph_sizes(20) == [1, 2, 4, 8, 16, 20]
    assert graph_sizes(64) == [1, 2, 4, *range(8, 65, 8)]


class Memory:
    """A device of 1,000 bytes."""

    def __init__(self, utilization: float, others_bytes: int, free: int) -> None:
        self.utilization = utilization
        self.others_bytes = others_bytes
        self.free = free

    def total_and_free(self) -> tuple[int, int]:
        return 1000, self.free

    def peak_bytes(self, run: Callable[[], object]) -> int:
        return int(str(run()))


@given(
    utilization=st.floats(0.1, 1),
    others=st.integers(0, 600),
    weights=st.integers(0, 400),
    needs=st.lists(st.integers(0, 400), max_size=3),
)
def test_cache_weights_and_steps_together_stay_within_the_share_and_within_what_is_there(
    utilization: float, others: int, weights: int, needs: list[int]
) -> None:
    free = 1000 - others - weights
    num_bytes = kv_cache_bytes(Memory(utilization, others, free), *(lambda n=n: n for n in needs))
    taken = weights + sum(needs)
    assert num_bytes == 0 or num_bytes + taken <= 1000 * utilization
    assert num_bytes == 0 or num_bytes + sum(needs) <= free
    assert num_bytes >= min(1000 * utilization - weights - 1, free) - sum(needs), "less than there might be"


def test_two_models_have_the_shares_of_a_device_that_each_was_granted() -> None:
    first = kv_cache_bytes(Memory(0.45, 20, 1000 - 20 - 100), lambda: 50)
    assert first == 450 - 100 - 50
    second = kv_cache_bytes(Memory(0.45, 20 + 450, 1000 - 20 - 450 - 100), lambda: 50)
    assert second == first
