"""Executes a schedule on the runner, and where that fails finds out which sequences are to blame.

A step that raises is executed again in halves until those that fail alone are known, so that one request that the
runner cannot take costs nobody else's answer. Executing a part again is harmless where keys and values are written by
slot: the same values go to the same places.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from nanovllm.batch import Batch, RowLogprobs, StepOutput
from nanovllm.engine.batch_builder import build_batch
from nanovllm.engine.scheduler import Schedule
from nanovllm.errors import BackendError, BackendLostError
from nanovllm.plugins.interfaces import ModelRunner

__all__ = ["Execution", "StepExecutor"]


@dataclass(frozen=True, slots=True)
class Execution:
    """What became of a step. errors: by index of the sequence in the schedule; it has no tokens in `output` then.
    has_failed: no part of it succeeded."""

    batch: Batch
    output: StepOutput
    errors: dict[int, BackendError] = field(default_factory=dict)
    has_failed: bool = False


class StepExecutor:
    """isolate: whether a step that failed may be executed again in parts."""

    def __init__(self, runner: ModelRunner, block_size: int, *, isolate: bool) -> None:
        self._runner = runner
        self._block_size = block_size
        self._isolate = isolate
        self._vocab_size = runner.model_info.vocab_size

    def execute(self, schedule: Schedule) -> Execution:
        """Computes a step. Raises `BackendLostError` where the runner is lost, and for nothing else that it did."""
        batch = build_batch(schedule, self._block_size)
        try:
            return Execution(batch, self._run(batch))
        except BackendLostError:
            raise
        except BackendError as error:
            parts = _Parts(schedule)
            self._split(parts, list(range(len(schedule.sequences))), error)
            has_failed = len(parts.errors) == batch.num_seqs
            return Execution(batch, parts.joined(), parts.errors, has_failed)

    def _run(self, batch: Batch) -> StepOutput:
        try:
            output = self._runner.submit(batch).result()
        except BackendError:
            raise
        except Exception as error:
            raise BackendError(
                f"the model runner failed in a step of {batch.num_seqs} sequences and {batch.num_tokens} tokens: "
                f"{type(error).__name__}: {error}"
            ) from error
        _check_output(output, batch, self._vocab_size)
        return output

    def _split(self, parts: "_Parts", indices: list[int], error: BackendError) -> None:
        """The sequences at `indices` failed together: halves them, unless that would go on for ever."""
        parts.num_failures += 1
        if len(indices) == 1 or not self._isolate or parts.is_hopeless:
            parts.errors.update((i, error) for i in indices)
            return
        middle = len(indices) // 2
        for half in (indices[:middle], indices[middle:]):
            try:
                part = parts.schedule.part(half, parts.unreported)
                parts.put(half, self._run(build_batch(part, self._block_size)))
            except BackendLostError:
                raise
            except BackendError as half_error:
                self._split(parts, half, half_error)


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


def _check_output(output: StepOutput, batch: Batch, vocab_size: int) -> None:
    """A runner owes a token to each sampled row, none to a sequence without one, and the log-probabilities wanted."""
    sampling = batch.sampling
    num_rows = (batch.logits_start[1:] - batch.logits_start[:-1]).tolist()
    if sampling.targets is not None:
        is_target = (sampling.targets >= 0).tolist()
        bounds = pairwise(batch.logits_start.tolist())
        num_rows = [count - sum(is_target[a:b]) for count, (a, b) in zip(num_rows, bounds, strict=True)]
    counts = [len(token_ids) for token_ids in output.token_ids]
    if counts != num_rows and not _are_enough(counts, num_rows):
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
