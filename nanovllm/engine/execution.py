"""Executes schedules on the runner, and where a step fails finds out which sequences are to blame.

A step that raises is executed again in halves until those that fail alone are known, so that one request that the
runner cannot take costs nobody else's answer. Executing a part again is harmless where keys and values are written by
slot: the same values go to the same places. A step that was submitted on top of one that failed is thrown away.
"""

from collections.abc import Sequence as Seq
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from nanovllm.batch import Batch, RowLogprobs, StepOutput
from nanovllm.engine.batch_builder import build_batch
from nanovllm.engine.schedule import Schedule
from nanovllm.engine.sequence import SequenceStatus
from nanovllm.errors import BackendError, BackendLostError
from nanovllm.plugins.interfaces import ModelRunner, PendingStep

__all__ = ["Execution", "StepExecutor", "SubmittedStep"]


@dataclass(frozen=True, slots=True)
class SubmittedStep:
    """A step that the runner has been given; its output is still to come."""

    schedule: Schedule
    batch: Batch
    pending: PendingStep

    @property
    def is_refused(self) -> bool:
        """Whether the runner is known not to compute it."""
        return isinstance(self.pending, _Refused)


@dataclass(frozen=True, slots=True)
class Execution:
    """What became of a step.

    errors: by index of the sequence in the schedule; it has no tokens in `output` then. unreported: sequences whose
    release the runner may not have heard of. ahead: the step that was submitted after it, unless it is of no use.
    """

    batch: Batch
    output: StepOutput
    errors: dict[int, BackendError] = field(default_factory=dict)
    unreported: Seq[int] = ()
    ahead: SubmittedStep | None = None


class StepExecutor:
    """isolate: whether a step that failed may be executed again in parts."""

    def __init__(self, runner: ModelRunner, block_size: int, *, isolate: bool) -> None:
        self._runner = runner
        self._block_size = block_size
        self._isolate = isolate
        self._vocab_size = runner.model_info.vocab_size

    def submit(self, schedule: Schedule) -> SubmittedStep:
        """Starts a step. Never raises for what the runner did."""
        batch = build_batch(schedule, self._block_size)
        return SubmittedStep(schedule, batch, self._submit(batch))

    def finish(self, step: SubmittedStep, ahead: SubmittedStep | None = None) -> Execution:
        """Waits for a step. ahead: the one that was submitted after it.

        Raises `BackendLostError` where the runner is lost, and for nothing else that it did.
        """
        try:
            return Execution(step.batch, self._result(step.batch, step.pending), ahead=ahead)
        except BackendLostError:
            raise
        except BackendError as error:
            unreported: list[int] = []
            if ahead is not None:
                self.discard(ahead)
                unreported = ahead.schedule.released
            parts = self._in_parts(step.schedule, error)
            return Execution(step.batch, parts.joined(), parts.errors, [*parts.unreported, *unreported])

    def discard(self, step: SubmittedStep) -> None:
        """Waits for a step whose output nobody wants."""
        with suppress(Exception):
            step.pending.result()

    def _submit(self, batch: Batch) -> PendingStep:
        try:
            return self._runner.submit(batch)
        except Exception as error:
            return _Refused(error)

    def _result(self, batch: Batch, pending: PendingStep) -> StepOutput:
        try:
            output = pending.result()
        except BackendError:
            raise
        except Exception as error:
            raise BackendError(
                f"the model runner failed in a step of {batch.num_seqs} sequences and {batch.num_tokens} tokens: "
                f"{type(error).__name__}: {error}"
            ) from error
        _check_output(output, batch, self._vocab_size, may_add=not self._runner.overlaps)
        return output

    def _in_parts(self, schedule: Schedule, error: BackendError) -> "_Parts":
        """A step that failed, executed again. Sequences that have ended since it was submitted are left out."""
        parts = _Parts(schedule)
        live = [i for i, seq in enumerate(schedule.sequences) if seq.status is SequenceStatus.RUNNING]
        if len(live) == len(schedule.sequences):
            self._split(parts, live, error)
        elif live:
            self._try(parts, live)
        return parts

    def _split(self, parts: "_Parts", indices: list[int], error: BackendError) -> None:
        """The sequences at `indices` failed together: halves them, unless that would go on for ever."""
        parts.num_failures += 1
        if len(indices) == 1 or not self._isolate or parts.is_hopeless:
            parts.errors.update((i, error) for i in indices)
            return
        middle = len(indices) // 2
        for half in (indices[:middle], indices[middle:]):
            self._try(parts, half)

    def _try(self, parts: "_Parts", indices: list[int]) -> None:
        """Executes the sequences at `indices` together, and in parts where that fails."""
        try:
            batch = build_batch(parts.schedule.part(indices, parts.unreported), self._block_size)
            parts.put(indices, self._result(batch, self._submit(batch)))
        except BackendLostError:
            raise
        except BackendError as error:
            self._split(parts, indices, error)


@dataclass(frozen=True, slots=True)
class _Refused:
    """A step that could not even be submitted."""

    error: Exception

    def result(self) -> StepOutput:
        raise self.error


class _Parts:
    """A step's output, put together from parts of it.

    unreported: sequences whose release the runner has not heard of in a part that succeeded. num_failures: parts that
    failed so far.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.unreported = schedule.released
        self.errors: dict[int, BackendError] = {}
        self.num_failures = 0
        self._has_succeeded = False
        self._token_ids: list[Seq[int]] = [[] for _ in schedule.sequences]
        self._logprobs: list[Seq[RowLogprobs | None]] = [[None] * count for count in schedule.num_logits]

    @property
    def is_hopeless(self) -> bool:
        """Whether the runner seems to fail on everything, and is not asked for ever: finding one culprit among n takes
        log2(n) failures, and something has succeeded by then."""
        return not self._has_succeeded and self.num_failures > 4 * len(self.schedule.sequences).bit_length()

    def put(self, indices: list[int], output: StepOutput) -> None:
        self._has_succeeded = True
        self.unreported = []
        starts = accumulate((self.schedule.num_logits[i] for i in indices), initial=0)
        for i, token_ids, (start, end) in zip(indices, output.token_ids, pairwise(starts), strict=True):
            self._token_ids[i] = token_ids
            if output.logprobs is not None:
                self._logprobs[i] = output.logprobs[start:end]

    def joined(self) -> StepOutput:
        return StepOutput(self._token_ids, [row for rows in self._logprobs for row in rows])


def _check_output(output: StepOutput, batch: Batch, vocab_size: int, *, may_add: bool) -> None:
    """A runner owes a token to each sampled row, none to a sequence without one, and the log-probabilities wanted.

    may_add: whether it may have found further tokens by itself.
    """
    sampling = batch.sampling
    num_rows = (batch.logits_start[1:] - batch.logits_start[:-1]).tolist()
    if sampling.targets is not None:
        is_target = (sampling.targets >= 0).tolist()
        bounds = pairwise(batch.logits_start.tolist())
        num_rows = [count - sum(is_target[a:b]) for count, (a, b) in zip(num_rows, bounds, strict=True)]
    counts = [len(token_ids) for token_ids in output.token_ids]
    if counts != num_rows and not (may_add and _are_enough(counts, num_rows)):
        raise BackendError(
            f"the model runner returned {counts} token ids for the sequences of a step; it owes one for each sampled "
            f"row, here {num_rows}. Have the backend fixed."
        )
    sampled = [token_id for token_ids in output.token_ids for token_id in token_ids]
    if sampled and not 0 <= min(sampled) <= max(sampled) < vocab_size:
        raise BackendError(
            f"the model runner sampled tokens from {min(sampled)} to {max(sampled)}; the model's ids are 0 to "
            f"{vocab_size - 1}. Have the backend fixed."
        )
    if sampling.num_logprobs is not None:
        wanted = (sampling.num_logprobs >= 0).tolist()
        if output.logprobs is None or [row is not None for row in output.logprobs] != wanted:
            raise BackendError("the model runner did not return the log-probabilities that were wanted.")


def _are_enough(counts: list[int], num_rows: list[int]) -> bool:
    """Whether all that differs is more tokens than rows, where one row was wanted."""
    return len(counts) == len(num_rows) and all(
        count == rows or (rows == 1 and count > 1) for count, rows in zip(counts, num_rows, strict=True)
    )
