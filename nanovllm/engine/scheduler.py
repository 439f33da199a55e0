"""Scheduler: which sequences compute how many tokens in the next step.

In: sequences, and after each step what it sampled. Out: plain data (`Schedule`). Pure: it runs no model and knows
nothing about text. There is no prefill phase and no decode phase; a sequence has `num_tokens`, of which
`num_computed_tokens` lie in the KV cache, and a step hands out a token budget to make the second catch up:

1. every running sequence with one token to compute (a decode), so that no long prompt ever stalls the others;
2. running sequences in mid-prompt, by a chunk each, as far as budget and blocks go;
3. waiting sequences, in the policy's order, each on top of the prefix that the cache holds of it.

When a decode finds no free block, the least urgent running sequence is preempted: it gives back its blocks and waits
to be computed again, mostly from the prefix cache. A policy is a sort key: lower is more urgent.
"""

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field

from nanovllm.batch import StepOutput
from nanovllm.config import EngineConfig, SchedulingPolicy
from nanovllm.engine.block_manager import BlockManager, PrefixMatch
from nanovllm.engine.sequence import Sequence, SequenceStatus
from nanovllm.outputs import FinishReason

__all__ = ["POLICIES", "Schedule", "Scheduler"]

Urgency = Callable[[Sequence], tuple[int, ...]]

POLICIES: dict[SchedulingPolicy, Urgency] = {
    "fcfs": lambda seq: (seq.arrival,),
    "priority": lambda seq: (seq.priority, seq.arrival),
}


@dataclass(slots=True)
class Schedule:
    """One step's work: sequences and the number of tokens that each computes. The first `num_decodes` compute one.

    released: ids of the sequences that gave up their state since the step before.
    """

    budget: int
    released: list[int]
    sequences: list[Sequence] = field(default_factory=list)
    num_new_tokens: list[int] = field(default_factory=list)
    num_decodes: int = 0
    preempted: bool = False

    def add(self, seq: Sequence, num_new_tokens: int) -> None:
        self.sequences.append(seq)
        self.num_new_tokens.append(num_new_tokens)
        self.budget -= num_new_tokens


class Scheduler:
    """Owns the waiting and the running sequences, both in the policy's order."""

    def __init__(self, block_manager: BlockManager, config: EngineConfig) -> None:
        self._blocks = block_manager
        self._max_num_seqs = config.max_num_seqs
        self._max_num_batched_tokens = config.max_num_batched_tokens
        self._chunked = config.enable_chunked_prefill
        self._urgency = POLICIES[config.scheduling_policy]
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._released: list[int] = []
        self._num_arrivals = 0
        self.num_preemptions = 0
        self.prefix_cache_queries = 0  # tokens
        self.prefix_cache_hits = 0  # tokens

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    def add(self, seq: Sequence) -> None:
        """Queues a new sequence. The caller has checked that it fits the cache when it runs alone."""
        assert self._blocks.num_blocks_for(seq.num_prompt_tokens + seq.max_tokens) <= self._blocks.num_blocks
        seq.arrival = self._num_arrivals
        self._num_arrivals += 1
        insort(self._waiting, seq, key=self._urgency)

    def finish(self, seq: Sequence, reason: FinishReason, stop_reason: int | str | None = None) -> None:
        """Ends a sequence wherever it stands; its blocks are free at once."""
        (self._waiting if seq.status is SequenceStatus.WAITING else self._running).remove(seq)
        self._release(seq, reason, stop_reason)

    def schedule(self) -> Schedule | None:
        """The next step, or None where no sequence is left. Every step computes at least one token."""
        if not self._running and not self._waiting:
            return None
        self._blocks.clear_pending()
        step = Schedule(self._max_num_batched_tokens, [])
        in_prefill = self._schedule_decodes(step)
        starved = self._schedule_prefills(in_prefill, step)
        if not (step.preempted or starved):
            self._admit(step)
        while not step.sequences:  # every running sequence is in mid-prompt and no block is free
            self._preempt(self._running[-1], step)
            self._schedule_prefills(list(self._running), step)
        step.released, self._released = self._released, []
        return step

    def update(self, step: Schedule, output: StepOutput) -> None:
        """Takes what the step sampled: appends tokens, publishes full blocks, ends sequences.

        A sequence that was ended while the step ran is left alone.
        """
        any_finished = False
        for seq, num_new, token_ids in zip(step.sequences, step.num_new_tokens, output.token_ids, strict=True):
            if seq.status is not SequenceStatus.RUNNING:
                continue
            seq.num_computed_tokens += num_new
            if seq.num_computed_tokens // self._blocks.block_size > len(seq.cached_serials):
                self._blocks.publish(seq)
            for token_id in token_ids:
                seq.token_ids.append(token_id)
                if token_id in seq.stop_token_ids or len(seq.token_ids) - seq.num_prompt_tokens >= seq.max_tokens:
                    self._end(seq, token_id)
                    any_finished = True
                    break
        if any_finished:
            self._running = [seq for seq in self._running if seq.status is SequenceStatus.RUNNING]

    def fail(self, step: Schedule) -> None:
        """The step's runner failed: its sequences are ended, and what it was to release is released by the next one."""
        self._released[:0] = step.released
        for seq in step.sequences:
            if seq.status is SequenceStatus.RUNNING:
                self.finish(seq, FinishReason.ABORT)

    def _end(self, seq: Sequence, token_id: int) -> None:
        if token_id not in seq.stop_token_ids:
            self._release(seq, FinishReason.LENGTH, None)
        else:
            asked_for = token_id in (seq.sampling_params.stop_token_ids or ())
            self._release(seq, FinishReason.STOP, token_id if asked_for else None)

    def _release(self, seq: Sequence, reason: FinishReason, stop_reason: int | str | None) -> None:
        seq.status = SequenceStatus.FINISHED
        seq.finish_reason, seq.stop_reason = reason, stop_reason
        self._blocks.free(seq)
        self._released.append(seq.seq_id)

    def _schedule_decodes(self, step: Schedule) -> list[Sequence]:
        """Schedules the running sequences with one token to compute; returns those with more.

        `_running` is in order of urgency and victims are taken from its end, so no victim is scheduled already.
        """
        in_prefill = []
        block_size = self._blocks.block_size
        index = 0
        while index < len(self._running):
            seq = self._running[index]
            num_tokens = len(seq.token_ids)
            if num_tokens - seq.num_computed_tokens > 1:
                in_prefill.append(seq)
            elif num_tokens <= len(seq.block_table) * block_size or self._make_room(seq, num_tokens, step):
                if num_tokens % block_size == 0:
                    self._blocks.mark_pending(seq, num_tokens)
                step.add(seq, 1)
            index += 1
        step.num_decodes = len(step.sequences)
        return [seq for seq in in_prefill if seq.status is SequenceStatus.RUNNING]

    def _make_room(self, seq: Sequence, num_tokens: int, step: Schedule) -> bool:
        """Finds blocks for `seq`, at the cost of less urgent ones; False where it had to give way itself."""
        while self._blocks.allocate(seq, num_tokens) is None:
            victim = self._running[-1]
            self._preempt(victim, step)
            if victim is seq:
                return False
        return True

    def _preempt(self, victim: Sequence, step: Schedule) -> None:
        assert self._running[-1] is victim, "victims are taken from the end"
        self._running.pop()
        self._blocks.free(victim)
        victim.status = SequenceStatus.WAITING
        insort(self._waiting, victim, key=self._urgency)
        self._released.append(victim.seq_id)
        self.num_preemptions += 1
        step.preempted = True

    def _schedule_prefills(self, in_prefill: list[Sequence], step: Schedule) -> bool:
        """Gives each sequence in mid-prompt the chunk that budget and free blocks allow; True where blocks ran out."""
        starved = False
        for seq in in_prefill:
            missing = seq.num_tokens - seq.num_computed_tokens
            room = (len(seq.block_table) + self._blocks.num_free_blocks) * self._blocks.block_size
            num_new = min(missing, step.budget, room - seq.num_computed_tokens)
            starved |= num_new < min(missing, step.budget)
            if num_new > 0:
                self._schedule_chunk(seq, num_new, step)
        return starved

    def _admit(self, step: Schedule) -> None:
        """Starts waiting sequences while budget, places and blocks last.

        A sequence whose next block is being computed in this very step is passed over: the next step finds it cached.
        """
        index = 0
        while step.budget > 0 and len(self._running) < self._max_num_seqs and index < len(self._waiting):
            seq = self._waiting[index]
            match = self._blocks.match_prefix(seq)
            if match.pending:
                index += 1
                if index > self._max_num_seqs:
                    return  # bounds the work of a step when thousands wait for one prefix
                continue
            missing = seq.num_tokens - len(match.block_ids) * self._blocks.block_size
            if (missing > step.budget and not self._chunked) or not self._blocks.can_allocate(seq.num_tokens, match):
                return
            self._start(self._waiting.pop(index), match)
            self._schedule_chunk(seq, min(missing, step.budget), step)

    def _start(self, seq: Sequence, match: PrefixMatch) -> None:
        self._blocks.adopt(seq, match)
        seq.status = SequenceStatus.RUNNING
        insort(self._running, seq, key=self._urgency)
        if seq.num_cached_tokens is None:
            seq.num_cached_tokens = seq.num_computed_tokens
        self.prefix_cache_queries += seq.num_tokens
        self.prefix_cache_hits += seq.num_computed_tokens

    def _schedule_chunk(self, seq: Sequence, num_new: int, step: Schedule) -> None:
        allocated = self._blocks.allocate(seq, seq.num_computed_tokens + num_new)
        assert allocated is not None, "the caller has made sure of the blocks"
        self._blocks.mark_pending(seq, seq.num_computed_tokens + num_new)
        step.add(seq, num_new)

    def check_invariants(self) -> None:
        """Raises AssertionError unless both queues are in order and consistent with the blocks. For tests."""
        for queue, status in ((self._waiting, SequenceStatus.WAITING), (self._running, SequenceStatus.RUNNING)):
            assert all(seq.status is status for seq in queue), f"a sequence stands in the wrong queue: {queue}"
            urgencies = [self._urgency(seq) for seq in queue]
            assert urgencies == sorted(urgencies), f"the {status.name} queue is out of order"
        assert not any(seq.block_table for seq in self._waiting), "a waiting sequence holds blocks"
        assert len(self._running) <= self._max_num_seqs, "too many sequences run"
        self._blocks.check_invariants(self._running)
