"""LateMockRunner: a mock that computes a step as late as a runner may, when its result is asked for.

So whatever the engine does between the two, it does without the step's tokens; and tokens that the engine left unknown
(`LAST_SAMPLED`) are filled in here, from the step before.
"""

from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from backends.mock.runner import MockRunner
from nanovllm.batch import LAST_SAMPLED
from nanovllm.errors import BackendError
from nanovllm.plugins import Batch, PendingStep, StepOutput

__all__ = ["LateMockRunner"]


@dataclass(slots=True, eq=False)
class _LateStep:
    """A step that waits to be computed, and then its outcome."""

    runner: "LateMockRunner"
    batch: Batch
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
        self._last_sampled: dict[int, int] = {}  # by sequence id: what the latest step sampled

    def submit(self, batch: Batch) -> PendingStep:
        step = _LateStep(self, batch)
        self._queue.append(step)
        return step

    def compute_up_to(self, step: _LateStep) -> None:
        """Computes the steps that were submitted, in their order, until `step` is done."""
        while not step.outcome:
            first = self._queue.popleft()
            first.outcome.append(self._outcome(first.batch))

    def _outcome(self, batch: Batch) -> StepOutput | Exception:
        last_sampled, self._last_sampled = self._last_sampled, {}
        try:
            output = self.execute(_filled_in(batch, last_sampled))
        except Exception as error:
            return error
        sampled = zip(batch.seq_ids, output.token_ids, strict=True)
        self._last_sampled = {seq_id: token_ids[-1] for seq_id, token_ids in sampled if token_ids}
        return output


def _filled_in(batch: Batch, last_sampled: dict[int, int]) -> Batch:
    """`batch` with the tokens that the step before sampled."""
    token_ids = batch.token_ids.copy()
    unknown = np.flatnonzero(token_ids == LAST_SAMPLED)
    owners = np.searchsorted(batch.query_start, unknown, side="right") - 1
    for index, owner in zip(unknown.tolist(), owners.tolist(), strict=True):
        seq_id = batch.seq_ids[owner]
        if seq_id not in last_sampled:
            raise BackendError(f"sequence {seq_id} goes on from a token that the step before did not sample")
        token_ids[index] = last_sampled[seq_id]
    return replace(batch, token_ids=token_ids)
