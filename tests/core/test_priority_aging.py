"""Priority with aging: urgent requests go first, and nothing waits for ever behind them."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from nanovllm import EngineConfig, FinishReason, SamplingParams
from nanovllm.batch import StepOutput
from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.sequence import Sequence, SequenceStatus

AGING = 10


def scheduler_of(max_num_seqs: int = 1, aging: int = AGING) -> Scheduler:
    config = EngineConfig(scheduling_policy="priority", priority_aging_steps=aging, max_num_seqs=max_num_seqs)
    return Scheduler(BlockManager(64, 4), config)


def sequence(seq_id: int, priority: int, max_tokens: int = 2) -> Sequence:
    return Sequence(seq_id, [seq_id % 7, 1, 2], SamplingParams(), max_tokens=max_tokens, priority=priority)


def make_step(scheduler: Scheduler) -> None:
    step = scheduler.schedule()
    if step is not None:
        scheduler.update(step, StepOutput([[5] if count else [] for count in step.num_logits]))


def test_the_more_urgent_of_two_that_wait_goes_first() -> None:
    scheduler = scheduler_of()
    late, early = sequence(0, priority=1), sequence(1, priority=0)
    scheduler.add(late)
    scheduler.add(early)
    make_step(scheduler)
    assert (early.status, late.status) == (SequenceStatus.RUNNING, SequenceStatus.WAITING)


@given(st.integers(0, 8), st.integers(1, 20), st.integers(1, 3))
def test_a_request_waits_a_bounded_time_behind_an_endless_stream_of_more_urgent_ones(
    priority: int, aging: int, max_num_seqs: int
) -> None:
    """Two more urgent ones arrive in every step: more than are served."""
    scheduler = scheduler_of(max_num_seqs, aging)
    patient = sequence(0, priority)
    for i in range(max_num_seqs):
        scheduler.add(sequence(1000 + i, priority=0))
    make_step(scheduler)
    scheduler.add(patient)
    num_steps = 0
    next_id = 1
    while patient.status is SequenceStatus.WAITING:
        for _ in range(2):
            scheduler.add(sequence(next_id, priority=0))
            next_id += 1
        make_step(scheduler)
        scheduler.check_invariants()
        num_steps += 1
        # It goes before all that came priority * aging steps after it; those before it are at most two a step.
        assert num_steps <= 2 * (2 * priority * aging + 4) + 4
    assert patient.finish_reason in (None, FinishReason.LENGTH)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 5)), min_size=2, max_size=20))
def test_the_order_of_two_waiting_requests_never_changes(arrivals: list[tuple[int, int]]) -> None:
    scheduler = scheduler_of()
    scheduler.add(sequence(0, priority=-100, max_tokens=200))
    waiting: list[Sequence] = []
    for i, (priority, num_steps) in enumerate(arrivals, start=1):
        waiting.append(sequence(i, priority))
        scheduler.add(waiting[-1])
        for _ in range(num_steps):
            make_step(scheduler)
        order = sorted(waiting, key=lambda seq: seq.urgency)
        assert all(earlier.urgency < later.urgency for earlier, later in pairwise(order))
    started: list[int] = []
    for _ in range(260):
        make_step(scheduler)
        started += [
            seq.seq_id for seq in waiting if seq.status is not SequenceStatus.WAITING and seq.seq_id not in started
        ]
    assert started == [seq.seq_id for seq in order]
