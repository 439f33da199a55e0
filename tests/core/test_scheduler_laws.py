"""Laws of the scheduler, whatever arrives, however few blocks there are, under both policies.

The runner is the mock, given real batches: it reads the whole context back through the block table, so a sequence gets
the tokens that `next_token` predicts only if every block, slot and length was right.
"""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backends.mock.runner import MockRunner, next_token
from nanovllm import EngineConfig, FinishReason, SamplingParams
from nanovllm.engine.batch_builder import build_batch
from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.schedule import Schedule
from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.sequence import Sequence, SequenceStatus

VOCAB_SIZE = 7  # small, so that end-of-sequence is sampled often
EOS = 0
MAX_LEN = 24


def predicted(prompt: list[int], max_tokens: int, *, ignore_eos: bool = False) -> list[int]:
    """What the mock says to `prompt` when nobody else is there."""
    tokens = list(prompt)
    while len(tokens) - len(prompt) < max_tokens:
        tokens.append(next_token(tokens, VOCAB_SIZE))
        if tokens[-1] == EOS and not ignore_eos:
            break
    return tokens[len(prompt) :]


class World:
    """A scheduler, its blocks, the mock, and a record of what it was told and what it did."""

    def __init__(self, *, num_blocks: int, block_size: int, **options: object) -> None:
        self.config = EngineConfig.from_options(options)
        self.blocks = BlockManager(num_blocks, block_size, enable_prefix_caching=self.config.enable_prefix_caching)
        self.scheduler = Scheduler(self.blocks, self.config)
        self.runner = MockRunner(vocab_size=VOCAB_SIZE, eos_token_id=EOS)
        self.runner.allocate_kv_cache(num_blocks, block_size)
        self.sequences: list[Sequence] = []
        self.unreported: Counter[int] = Counter()  # releases that no step has reported yet
        self.num_steps = 0

    def add(self, prompt: list[int], max_tokens: int = 4, *, priority: int = 0, ignore_eos: bool = False) -> Sequence:
        seq = Sequence(
            len(self.sequences),
            prompt,
            SamplingParams(temperature=0, ignore_eos=ignore_eos),
            max_tokens=max_tokens,
            eos_token_ids=(EOS,),
            priority=priority,
        )
        self.sequences.append(seq)
        self.scheduler.add(seq)
        return seq

    def with_status(self, status: SequenceStatus) -> list[Sequence]:
        return [seq for seq in self.sequences if seq.status is status]

    @property
    def unfinished(self) -> list[Sequence]:
        return [seq for seq in self.sequences if seq.status is not SequenceStatus.FINISHED]

    def abort(self, seq: Sequence) -> None:
        self.scheduler.finish(seq, FinishReason.ABORT)
        self.unreported[seq.seq_id] += 1

    def schedule(self) -> Schedule | None:
        """The next step, after checking every law that a schedule can break."""
        running, waiting = self.with_status(SequenceStatus.RUNNING), self.with_status(SequenceStatus.WAITING)
        decoding = [seq for seq in running if seq.num_tokens - seq.num_computed_tokens == 1]
        step = self.scheduler.schedule()
        if step is None:
            assert not running
            assert not waiting
            return None
        preempted = [seq for seq in running if seq.status is SequenceStatus.WAITING]
        self.unreported.update(seq.seq_id for seq in preempted)
        self.check_shape(step)
        self.check_releases(step)
        self.check_decodes(step, decoding)
        self.check_victims(preempted)
        self.check_admissions(step, waiting)
        return step

    def check_shape(self, step: Schedule) -> None:
        assert 1 <= sum(step.num_new_tokens) <= self.config.max_num_batched_tokens
        assert min(step.num_new_tokens) >= 1
        assert len(step.sequences) == len(step.num_new_tokens)
        assert len({seq.seq_id for seq in step.sequences}) == len(step.sequences) <= self.config.max_num_seqs
        for seq, num_new in zip(step.sequences, step.num_new_tokens, strict=True):
            assert seq.status is SequenceStatus.RUNNING
            assert seq.num_computed_tokens + num_new <= seq.num_tokens
            assert seq.num_computed_tokens + num_new <= len(seq.block_table) * self.blocks.block_size
            if not self.config.enable_chunked_prefill:
                assert seq.num_computed_tokens + num_new == seq.num_tokens, "a prompt was cut"
        assert step.num_new_tokens[: step.num_decodes] == [1] * step.num_decodes
        self.scheduler.check_invariants()

    def check_releases(self, step: Schedule) -> None:
        """Every release since the last step is reported, once; what is computed now has not been released."""
        assert Counter(step.released) == self.unreported
        self.unreported = Counter()
        assert not set(step.released) & {seq.seq_id for seq in step.sequences}

    def check_decodes(self, step: Schedule, decoding: list[Sequence]) -> None:
        """No prefill holds back a decode: it is in the step, unless it gave its blocks to a more urgent one."""
        new_tokens = {seq.seq_id: num for seq, num in zip(step.sequences, step.num_new_tokens, strict=True)}
        for seq in decoding:
            assert new_tokens.get(seq.seq_id) == 1 or seq.status is SequenceStatus.WAITING, f"{seq} was held back"

    def check_victims(self, preempted: list[Sequence]) -> None:
        survivors = self.with_status(SequenceStatus.RUNNING)
        for victim in preempted:
            assert all(victim.urgency > seq.urgency for seq in survivors), f"{victim} was preempted out of turn"

    def check_admissions(self, step: Schedule, waiting: list[Sequence]) -> None:
        """Admission is in order of urgency; only a prefix that this step computes lets others pass."""
        admitted = [seq for seq in waiting if seq.status is SequenceStatus.RUNNING]
        for seq in admitted:
            assert seq in step.sequences
            assert not self.computed_by_another(seq, step), f"{seq} computes a block that another one computes now"
            for other in waiting:
                if other.status is SequenceStatus.WAITING and other.urgency < seq.urgency:
                    assert self.shares_a_block(other, step), f"{seq} passed {other}"

    def computed_by_another(self, seq: Sequence, step: Schedule) -> bool:
        """Whether one before `seq` in the step completes the block that `seq` starts with, and `seq` could have waited.

        The block of its last token is no reason to wait: that one is computed in any case.
        """
        end = seq.num_computed_tokens + self.blocks.block_size
        if not self.config.enable_prefix_caching or end >= seq.num_tokens:
            return False
        return any(
            other.num_computed_tokens < end <= other.num_computed_tokens + num_new
            and other.token_ids[:end] == seq.token_ids[:end]
            for other, num_new in zip(step.sequences[: step.sequences.index(seq)], step.num_new_tokens, strict=False)
        )

    def shares_a_block(self, seq: Sequence, step: Schedule) -> bool:
        first = seq.token_ids[: self.blocks.block_size]
        same = [other for other in step.sequences if other.token_ids[: self.blocks.block_size] == first]
        return self.config.enable_prefix_caching and len(first) == self.blocks.block_size and bool(same)

    def update(self, step: Schedule, *, aborted: Sequence | None = None) -> None:
        """Runs the step, with one sequence aborted while it ran."""
        output = self.runner.execute(build_batch(step, self.blocks.block_size))
        if aborted is not None:
            self.abort(aborted)
        before = {seq.seq_id for seq in self.unfinished}
        self.scheduler.update(step, output)
        self.unreported.update(before - {seq.seq_id for seq in self.unfinished})
        self.num_steps += 1
        self.scheduler.check_invariants()

    def step(self) -> bool:
        step = self.schedule()
        if step is not None:
            self.update(step)
        return step is not None

    def run(self, *, max_steps: int = 5000) -> None:
        """Until nothing is left."""
        for _ in range(max_steps):
            if not self.step():
                return
        raise AssertionError(f"after {max_steps} steps {self.unfinished} have not finished")

    def check_end(self) -> None:
        """All blocks are back, and everyone was told what it would have been told alone."""
        assert not self.unfinished
        assert self.blocks.num_free_blocks == self.blocks.num_blocks
        assert self.blocks.num_cached_blocks <= self.blocks.num_blocks
        assert self.config.enable_prefix_caching or self.blocks.num_cached_blocks == 0
        assert (self.scheduler.num_running, self.scheduler.num_waiting) == (0, 0)
        self.blocks.check_invariants([])
        for seq in self.sequences:
            self.check_tokens(seq)

    def check_tokens(self, seq: Sequence) -> None:
        ignore_eos = seq.sampling_params.ignore_eos
        expected = predicted(seq.prompt_token_ids, seq.max_tokens, ignore_eos=ignore_eos)
        if seq.finish_reason is FinishReason.ABORT:
            assert seq.output_token_ids == expected[: seq.num_output_tokens]
            return
        assert seq.output_token_ids == expected
        by_eos = expected[-1] == EOS and not ignore_eos
        assert seq.finish_reason is (FinishReason.STOP if by_eos else FinishReason.LENGTH)


class SchedulerMachine(RuleBasedStateMachine):
    """Random traffic through a `World`; prompts over two tokens, so that prefixes are often shared."""

    @initialize(
        block_size=st.integers(1, 4),
        spare_blocks=st.integers(0, 10),
        max_num_seqs=st.integers(1, 5),
        budget=st.integers(0, MAX_LEN),
        policy=st.sampled_from(["fcfs", "priority"]),
        chunked=st.booleans(),
        caching=st.booleans(),
    )
    def build(
        self,
        block_size: int,
        spare_blocks: int,
        max_num_seqs: int,
        budget: int,
        policy: str,
        chunked: bool,
        caching: bool,
    ) -> None:
        self.world = World(
            num_blocks=-(-MAX_LEN // block_size) + spare_blocks,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_seqs + budget if chunked else MAX_LEN,
            scheduling_policy=policy,
            enable_chunked_prefill=chunked,
            enable_prefix_caching=caching,
        )

    @rule(
        prompt=st.lists(st.integers(1, 2), min_size=1, max_size=MAX_LEN - 1),
        max_tokens=st.integers(1, MAX_LEN),
        priority=st.integers(-2, 2),
        ignore_eos=st.booleans(),
    )
    def arrive(self, prompt: list[int], max_tokens: int, priority: int, ignore_eos: bool) -> None:
        max_tokens = min(max_tokens, MAX_LEN - len(prompt))
        self.world.add(prompt, max_tokens, priority=priority, ignore_eos=ignore_eos)

    @precondition(lambda self: any(self.world.sequences))
    @rule(data=st.data(), cut=st.integers(0, 12))
    def arrive_with_the_start_of_another(self, data: st.DataObject, cut: int) -> None:
        """A prompt that goes on from another's tokens, output included, as the next turn of a chat does."""
        other = data.draw(st.sampled_from(self.world.sequences))
        prompt = [*other.token_ids[: max(1, len(other.token_ids) - cut)], 1]
        self.world.add(prompt[: MAX_LEN - 4])

    @rule()
    def step(self) -> None:
        self.world.step()

    @rule()
    def several_steps(self) -> None:
        for _ in range(4):
            self.world.step()

    @precondition(lambda self: self.world.unfinished)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.world.abort(data.draw(st.sampled_from(self.world.unfinished)))

    @precondition(lambda self: self.world.unfinished)
    @rule(data=st.data())
    def abort_while_a_step_runs(self, data: st.DataObject) -> None:
        step = self.world.schedule()
        assert step is not None
        self.world.update(step, aborted=data.draw(st.sampled_from(self.world.unfinished)))

    @invariant()
    def books_agree(self) -> None:
        if hasattr(self, "world"):
            self.world.scheduler.check_invariants()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.run()
            self.world.check_end()


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=150, stateful_step_count=30)


def test_several_new_requests_compute_their_shared_prefix_once() -> None:
    world = World(num_blocks=40, block_size=4, max_num_seqs=8, max_num_batched_tokens=64)
    prefix = [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6]  # three blocks
    for last in range(1, 6):
        world.add([*prefix, last], max_tokens=1)
    computed = 0
    while (step := world.schedule()) is not None:
        computed += sum(step.num_new_tokens)
        world.update(step)
    assert computed == len(prefix) + 5
    assert world.num_steps == 2
    world.check_end()


@pytest.mark.parametrize("budget", range(2, 14))
def test_a_prefix_that_takes_several_steps_is_still_computed_once(budget: int) -> None:
    world = World(num_blocks=40, block_size=4, max_num_seqs=2, max_num_batched_tokens=budget)
    prefix = [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5]
    world.add([*prefix, 1], max_tokens=1)  # three full blocks
    world.add([*prefix, 1, 2], max_tokens=1)
    computed = 0
    while (step := world.schedule()) is not None:
        computed += sum(step.num_new_tokens)
        world.update(step)
    assert computed == 12 + 1
    world.check_end()


def test_a_request_whose_prefix_is_pending_lets_others_pass() -> None:
    world = World(num_blocks=40, block_size=4, max_num_seqs=8, max_num_batched_tokens=64)
    shared = [1, 2, 3, 4, 5]
    first, same, other = world.add(shared), world.add(shared), world.add([6, 6, 6, 6, 6])
    step = world.schedule()
    assert step is not None
    assert step.sequences == [first, other]
    world.update(step)
    step = world.schedule()
    assert step is not None
    assert same in step.sequences
    assert same.num_cached_tokens == 4


@pytest.mark.parametrize("num_blocks", [6, 7, 12])
def test_first_come_first_served_starves_nobody_under_endless_arrivals(num_blocks: int) -> None:
    world = World(num_blocks=num_blocks, block_size=4, max_num_seqs=3, max_num_batched_tokens=5)
    for _ in range(3):
        world.add([3, 3, 3], max_tokens=6, ignore_eos=True)
    longest = world.add([1] * 20, max_tokens=4, ignore_eos=True)
    while longest.status is not SequenceStatus.FINISHED:
        world.add([1, 1, 1, 1, 2], max_tokens=6, ignore_eos=True)  # shares a prefix with it, too
        world.step()
        assert world.num_steps < 60
    world.run()
    world.check_end()


def test_the_priority_policy_starts_the_most_urgent_first_and_ties_in_order_of_arrival() -> None:
    world = World(num_blocks=8, block_size=4, max_num_seqs=1, max_num_batched_tokens=64, scheduling_policy="priority")
    priorities = [3, -1, 0, 3, -1]
    for i, priority in enumerate(priorities):
        world.add([1 + i] * 3, max_tokens=2, priority=priority, ignore_eos=True)
    started: list[int] = []
    while (step := world.schedule()) is not None:
        started += [seq.seq_id for seq in step.sequences if seq.seq_id not in started]
        world.update(step)
    assert started == [1, 4, 2, 0, 3]


def test_first_come_first_served_does_not_look_at_priorities() -> None:
    world = World(num_blocks=8, block_size=4, max_num_seqs=1, max_num_batched_tokens=64)
    first = world.add([1, 2], priority=5)
    world.add([2, 1], priority=-5)
    step = world.schedule()
    assert step is not None
    assert step.sequences == [first]


def test_a_decode_without_a_block_preempts_the_newest_which_then_finds_its_prefix_cached() -> None:
    world = World(num_blocks=5, block_size=4, max_num_seqs=2, max_num_batched_tokens=64)
    old = world.add([1, 2, 3, 4, 5, 6, 1, 2], max_tokens=8, ignore_eos=True)
    new = world.add([6, 5, 4, 3, 2, 1, 6, 5], max_tokens=8, ignore_eos=True)
    world.step()
    assert (old.status, new.status) == (SequenceStatus.RUNNING, SequenceStatus.RUNNING)
    while new.status is SequenceStatus.RUNNING:
        world.step()
    assert (old.status, new.status) == (SequenceStatus.RUNNING, SequenceStatus.WAITING)
    assert world.scheduler.num_preemptions == 1
    hits = world.scheduler.prefix_cache_hits
    world.run()
    assert world.scheduler.prefix_cache_hits > hits
    world.check_end()
