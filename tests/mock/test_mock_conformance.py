"""The mock keeps the laws of a model runner."""

from backends.mock.runner import MockRunner
from nanovllm.testing import ModelRunnerConformance


class TestMockRunner(ModelRunnerConformance):
    def make_runner(self) -> MockRunner:
        return MockRunner(vocab_size=101)


class TestMockRunnerWithStatePerSequence(ModelRunnerConformance):
    kv = "per_sequence"

    def make_runner(self) -> MockRunner:
        return MockRunner(vocab_size=101)
