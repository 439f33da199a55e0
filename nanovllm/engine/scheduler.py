"""Scheduler: which sequences compute how many tokens in the next step.

In: sequences, and after each step what it sampled. Out: plain data (`Schedule`). Pure: it runs no model and knows
nothing about text. There is no prefill phase and no decode phase; a sequence has `num_tokens`, of which
`num_computed_tokens` lie in the KV cache, and a step hands out a token budget to make the second catch up:

1. every running sequence with one token to compute (a decode), so that no long prompt ever stalls the others;
2. drafts of these: guesses at their next tokens, computed beside the last one and verified by what is sampled there;
3. running sequences in mid-prompt, by a chunk each, as far as budget and blocks go;
4. waiting sequences, in the policy's order, each on top of the prefix that the cache holds of it.

When a decode finds no free block, the least urgent running sequence is preempted: it gives back its blocks and waits
to be computed again, mostly from the prefix cache.

Rows of logits are bounded as well, because each is as wide as the vocabulary. One row for every sequence is always
there; what `max_num_logits` leaves beyond that is shared by drafts and by prompts whose log-probabilities are wanted.
"""

from bisect import insort
from collections.abc import Sequence as Seq

from nanovllm.batch import StepOutput
from nanovllm.config import EngineConfig
from nanovllm.engine.block_manager import BlockManager, PrefixMatch
from nanovllm.engine.policies import POLICIES
from nanovllm.engine.schedule import Schedule
from nanovllm.engine.sequence import NO_TOKENS, Sequence, SequenceStatus
from nanovllm.errors import NanoVLLMError
from nanovllm.outputs import FinishReason

__all__ = ["Scheduler"]


class Scheduler:
    """Owns the waiting and the running sequences, both in the policy's order."""

    def __init__(self, block_manager: BlockManager, config: EngineConfig) -> None:
        self._blocks = block_manager
        self._max_num_seqs = config.max_num_seqs
        self._max_num_batched_tokens = config.max_num_batched_tokens
        self._spare_rows = config.logits_limit - config.max_num_seqs
        self._chunked = config.enable_chunked_prefill
        self._policy = POLICIES[config.scheduling_policy]
        self._aging = config.priority_aging_steps
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._released: list[int] = []
        self._num_arrivals = self._num_steps = 0
        self.num_preemptions = self.num_draft_tokens = self.num_accepted_tokens = 0
        self.prefix_cache_queries = 0  # tokens
        self.prefix_cache_hits = 0  # tokens

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> Seq[Sequence]:
        """The running sequences, the most urgent first. Not to be changed."""
        return self._running

    @property
    def num_running(self) -> int:
        return len(self._running)

    def add(self, seq: Sequence) -> None:
        """Queues a new sequence. The caller has checked that it fits the cache when it runs alone."""
        assert self._blocks.num_blocks_for(seq.num_prompt_tokens + seq.max_tokens) <= self._blocks.num_blocks
        seq.urgency = (*self._policy(seq.priority, self._num_steps, self._aging), self._num_arrivals)
        self._num_arrivals += 1
        insort(self._waiting, seq, key=_urgency)

    def finish(self, seq: Sequence, reason: FinishReason, stop_reason: int | str | None = None) -> None:
        """Ends a sequence wherever it stands; its blocks are free at once."""
        (self._waiting if seq.status is SequenceStatus.WAITING else self._running).remove(seq)
        self._release(seq, reason, stop_reason)

    def schedule(self) -> Schedule | None:
        """The next step, or None where no sequence is left. Every step computes at least one token."""
        if not self._running and not self._waiting:
            return None
        self._blocks.clear_pending()
        step = self._hand_out()
        while not step.sequences:  # every running sequence is in mid-prompt and no block is free
            self._preempt(self._running[-1], step)
            self._schedule_prefills(list(self._running), step)
        return self._sealed(step)

    def schedule_ahead(self) -> Schedule | None:
        """As `schedule`, inside `looking_ahead`, while the step before is being computed.

        None where nothing can be computed, or only at another sequence's cost: the step under way may end sequences, so
        that nobody has to give way once its tokens are known. So what is in flight is never preempted.
        """
        if self._would_preempt():
            return None
        self._blocks.age_pending()
        step = self._hand_out()
        return self._sealed(step) if step.sequences else None

    def _hand_out(self) -> Schedule:
        step = Schedule(self._max_num_batched_tokens, self._spare_rows, [])
        in_prefill = self._schedule_decodes(step)
        self._schedule_drafts(step)
        starved = self._schedule_prefills(in_prefill, step)
        if not (step.preempted or starved):
            self._admit(step)
        return step

    def _sealed(self, step: Schedule) -> Schedule:
        self._num_steps += 1
        step.released, self._released = self._released, []
        return step

    def _would_preempt(self) -> bool:
        """Whether the decodes of the next step need more blocks than are free."""
        num_free, block_size = self._blocks.num_free_blocks, self._blocks.block_size
        if num_free >= len(self._running):
            return False
        decodes = (seq for seq in self._running if seq.num_tokens - seq.num_computed_tokens == 1)
        return sum(seq.num_tokens > len(seq.block_table) * block_size for seq in decodes) > num_free

    def update(self, step: Schedule, output: StepOutput) -> dict[Sequence, NanoVLLMError]:
        """Takes what the step sampled: appends tokens, publishes full blocks, ends sequences.

        A sequence that was ended while the step ran is left alone. Returns the sequences that cannot go on, with the
        reason: their structured output has no next token.
        """
        any_finished = False
        failed: dict[Sequence, NanoVLLMError] = {}
        for seq, num_new, token_ids in zip(step.sequences, step.num_new_tokens, output.token_ids, strict=True):
            if seq.status is not SequenceStatus.RUNNING:
                continue
            seq.num_computed_tokens += num_new
            if not seq.is_plain and seq.wants_prompt_rows:
                num_rows_done = min(seq.num_computed_tokens, seq.num_prompt_tokens - 1)
                seq.prompt_rows_done = max(seq.prompt_rows_done, num_rows_done)  # it may be computed again
            if seq.draft_token_ids:
                token_ids = self._verify_drafts(seq, token_ids)
            reason = None
            for token_id in token_ids:
                try:
                    seq.append(token_id)
                    reason = _finish_reason(seq, token_id)
                except NanoVLLMError as error:
                    failed[seq] = error
                    reason = FinishReason.ERROR
                if reason is not None:
                    any_finished = True
                    break
            if seq.num_computed_tokens // self._blocks.block_size > len(seq.cached_serials):
                seq.num_computed_tokens = min(seq.num_computed_tokens, seq.num_tokens)  # of drafts past the end
                self._blocks.publish(seq)
            if reason is not None:
                self._end(seq, reason)
        if any_finished:
            self._running = [seq for seq in self._running if seq.status is SequenceStatus.RUNNING]
        return failed

    def _verify_drafts(self, seq: Sequence, token_ids: Seq[int]) -> Seq[int]:
        """The tokens that stand: what was sampled after each draft, as long as the drafts before it were sampled too.

        So every token is sampled from logits that follow exactly the tokens before it, as without drafts.
        """
        drafts, seq.draft_token_ids = seq.draft_token_ids, NO_TOKENS
        num_accepted = 0
        while num_accepted < len(drafts) and drafts[num_accepted] == token_ids[num_accepted]:
            num_accepted += 1
        seq.num_computed_tokens -= len(drafts) - num_accepted
        seq.num_draft_tokens += len(drafts)
        seq.num_accepted_tokens += num_accepted
        self.num_draft_tokens += len(drafts)
        self.num_accepted_tokens += num_accepted
        return token_ids[: num_accepted + 1]

    def release_again(self, released: Seq[int]) -> None:
        """A step failed, perhaps before the runner came to what it was to release: the next one says it."""
        self._released[:0] = released

    def _end(self, seq: Sequence, reason: FinishReason) -> None:
        asked_for = reason is FinishReason.STOP and seq.token_ids[-1] in (seq.sampling_params.stop_token_ids or ())
        self._release(seq, reason, seq.token_ids[-1] if asked_for else None)

    def _release(self, seq: Sequence, reason: FinishReason, stop_reason: int | str | None) -> None:
        seq.status = SequenceStatus.FINISHED
        seq.finish_reason, seq.stop_reason = reason, stop_reason
        self._blocks.free(seq)
        self._released.append(seq.seq_id)

    def _schedule_decodes(self, step: Schedule) -> list[Sequence]:
        """Schedules the running sequences with one token to compute; returns those with more (or none, looking ahead).

        `_running` is in order of urgency and victims are taken from its end, so no victim is scheduled already.
        """
        in_prefill = []
        block_size = self._blocks.block_size
        index = 0
        while index < len(self._running):
            seq = self._running[index]
            num_tokens = len(seq.token_ids)
            if num_tokens - seq.num_computed_tokens != 1:
                in_prefill.append(seq)
            elif num_tokens <= len(seq.block_table) * block_size or self._make_room(seq, num_tokens, step):
                if num_tokens % block_size == 0:
                    self._blocks.mark_pending(seq, num_tokens)
                step.add(seq, 1, 1)
            index += 1
        step.num_decodes = len(step.sequences)
        return [seq for seq in in_prefill if seq.status is SequenceStatus.RUNNING]

    def _schedule_drafts(self, step: Schedule) -> None:
        """Adds their drafts to the decodes, as far as they can be of use and no other sequence has to give way."""
        for i in range(step.num_decodes):
            seq = step.sequences[i]
            if seq.draft_token_ids:
                num_useful = seq.max_tokens - seq.num_output_tokens - 1
                num_drafts = max(0, min(len(seq.draft_token_ids), num_useful, step.budget, step.spare_rows))
                if self._blocks.allocate(seq, seq.num_tokens + num_drafts) is None:
                    num_drafts = 0
                seq.draft_token_ids = seq.draft_token_ids[:num_drafts]
                step.num_new_tokens[i] += num_drafts
                step.num_logits[i] += num_drafts
                step.budget -= num_drafts
                step.spare_rows -= num_drafts

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
        victim.draft_token_ids = NO_TOKENS
        victim.num_preemptions += 1
        victim.status = SequenceStatus.WAITING
        insort(self._waiting, victim, key=_urgency)
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
            num_new = _with_rows_for(seq, num_new, step)
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
            if seq.wants_prompt_rows and step.spare_rows == 0:
                return
            self._start(self._waiting.pop(index), match)
            self._schedule_chunk(seq, _with_rows_for(seq, min(missing, step.budget), step), step)

    def _start(self, seq: Sequence, match: PrefixMatch) -> None:
        self._blocks.adopt(seq, match)
        seq.status = SequenceStatus.RUNNING
        insort(self._running, seq, key=_urgency)
        if seq.num_cached_tokens is None:
            seq.num_cached_tokens = seq.num_computed_tokens
        self.prefix_cache_queries += seq.num_tokens
        self.prefix_cache_hits += seq.num_computed_tokens

    def _schedule_chunk(self, seq: Sequence, num_new: int, step: Schedule) -> None:
        allocated = self._blocks.allocate(seq, seq.num_computed_tokens + num_new)
        assert allocated is not None, "the caller has made sure of the blocks"
        self._blocks.mark_pending(seq, seq.num_computed_tokens + num_new)
        num_rows = seq.num_wanted_rows(num_new)
        step.spare_rows -= max(0, num_rows - int(seq.num_computed_tokens + num_new == seq.num_tokens))
        step.add(seq, num_new, num_rows)

    def check_invariants(self) -> None:
        """Raises AssertionError unless both queues are in order and consistent with the blocks. For tests."""
        for queue, status in ((self._waiting, SequenceStatus.WAITING), (self._running, SequenceStatus.RUNNING)):
            assert all(seq.status is status for seq in queue), f"a sequence stands in the wrong queue: {queue}"
            urgencies = [seq.urgency for seq in queue]
            assert urgencies == sorted(urgencies), f"the {status.name} queue is out of order"
        assert not any(seq.block_table for seq in self._waiting), "a waiting sequence holds blocks"
        assert len(self._running) <= self._max_num_seqs, "too many sequences run"
        self._blocks.check_invariants(self._running)


def _urgency(seq: Sequence) -> tuple[int, ...]:
    return seq.urgency


def _with_rows_for(seq: Sequence, num_new_tokens: int, step: Schedule) -> int:
    """`num_new_tokens`, or as many as the step has rows of logits for; the last row of a sequence is not counted."""
    if not seq.wants_prompt_rows:
        return num_new_tokens
    first = max(seq.num_computed_tokens, seq.prompt_rows_done) - seq.num_computed_tokens
    limit = first + step.spare_rows
    at_end = seq.num_computed_tokens + num_new_tokens == seq.num_tokens
    return num_new_tokens if num_new_tokens <= limit + int(at_end) else limit


def _finish_reason(seq: Sequence, token_id: int) -> FinishReason | None:
    """Whether the token that was just appended ends the sequence."""
    num_output = len(seq.token_ids) - seq.num_prompt_tokens
    if token_id in seq.stop_token_ids and num_output >= seq.min_tokens:
        return FinishReason.STOP
    return FinishReason.LENGTH if num_output >= seq.max_tokens else None
