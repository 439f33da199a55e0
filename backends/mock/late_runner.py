"""LateMockRunner: a mock that computes a step as late as a runner may, when its result is asked for.

So whatever the engine does between the two, it does without the step's tokens; and tokens that the engine left unknown
(`LAST_SAMPLED`) are filled in here, from the step before.
"""

from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from backends.mock.runner import MockRunner
from nanovllm.errors import BackendError
from nanovllm.plugins import LAST_SAMPLED, Batch, PendingStep, StepOutput, last_sampled_rows

__all__ = ["LateMockRunner"]


@dataclass(slots=True, eq=False)
class _LateStep:
    """A step that waits to be computed, and then its outcome. before: the batch that was submitted before it."""

    runner: "LateMockRunner"
    batch: Batch
    before: Batch | None
    outcome: list[StepOutput | Exception] = field(default_factory=list)

    def result(self) -> StepOutput:
        self.runner.compute_up_to(self)
        (outcome,) = self.outcome
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class LateMockRunner(MockRunner):
    """As `MockRunner`. A step that nobody waits for is computed before the next one that somebody does."""

    overlaps = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._queue: deque[_LateStep] = deque()
        self._latest: Batch | None = None
        self._sampled = np.zeros(0, np.int64)  # (num_logits,) of the step computed last

    def submit(self, batch: Batch) -> PendingStep:
        step = _LateStep(self, batch, self._latest)
        self._latest = batch
        self._queue.append(step)
        return step

    def compute_up_to(self, step: _LateStep) -> None:
        """Computes the steps that were submitted, in their order, until `step` is done."""
        while not step.outcome:
            first = self._queue.popleft()
            try:
                first.outcome.append(self._compute(first))
            except Exception as error:
                self._sampled = np.full(first.batch.num_logits, LAST_SAMPLED)
                first.outcome.append(error)

    def _compute(self, step: _LateStep) -> StepOutput:
        batch = step.batch
        if LAST_SAMPLED in batch.token_ids:
            batch = replace(batch, token_ids=self._filled_in(batch, step.before))
        output = self.execute(batch)
        self._sampled = np.full(batch.num_logits, LAST_SAMPLED)
        for token_ids, end in zip(output.token_ids, batch.logits_start[1:].tolist(), strict=True):
            if token_ids:
                self._sampled[end - 1] = token_ids[-1]
        return output

    def _filled_in(self, batch: Batch, before: Batch | None) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The tokens of `batch`, with what the step before sampled."""
        token_ids = batch.token_ids.copy()
        if before is not None:
            indices, rows = last_sampled_rows(batch, before)
            token_ids[indices] = self._sampled[rows]
        if LAST_SAMPLED in token_ids:
            raise BackendError("a sequence goes on from a token that the step before did not sample")
        return token_ids
