"""The mock keeps the laws of a model runner."""

from dataclasses import replace

import numpy as np
import pytest

from backends.mock.late_runner import LateMockRunner
from backends.mock.runner import MockRunner
from nanovllm.batch import Batch
from nanovllm.plugins import PendingStep
from nanovllm.testing import ModelRunnerConformance


class TestMockRunner(ModelRunnerConformance):
    def make_runner(self) -> MockRunner:
        return MockRunner(vocab_size=101)


class TestMockRunnerWithStatePerSequence(ModelRunnerConformance):
    kv = "per_sequence"

    def make_runner(self) -> MockRunner:
        return MockRunner(vocab_size=101)


class TestLateMockRunner(ModelRunnerConformance):
    def make_runner(self) -> MockRunner:
        return LateMockRunner(vocab_size=101)


class Forgetful(LateMockRunner):
    """Takes 0 for what the step before sampled."""

    def submit(self, batch: Batch) -> PendingStep:
        return super().submit(replace(batch, token_ids=np.maximum(batch.token_ids, 0)))


def test_the_laws_find_a_runner_that_overlaps_and_forgets_what_it_sampled() -> None:
    class Suite(ModelRunnerConformance):
        def make_runner(self) -> MockRunner:
            return Forgetful(vocab_size=101)

    with pytest.raises(AssertionError):
        Suite().test_steps_on_top_of_steps_that_are_not_known_yet_give_what_waiting_gives()
