"""A runner that is lost ends the engine: its requests and all later ones get the error, and nobody is asked again."""

from typing import Any

import pytest

from backends.mock.runner import MockRunner
from nanovllm import LLM, BackendLostError, SamplingParams
from nanovllm.config import EngineConfig
from nanovllm.plugins import Batch, ModelRunnerPlugin, ModelSource, StepOutput, Verdict, hookimpl
from nanovllm.plugins.manager import PluginManager

PARAMS = SamplingParams(max_tokens=20, ignore_eos=True)


class LosableRunner(MockRunner):
    """A mock that is lost in its third step."""

    num_steps = 0

    def execute(self, batch: Batch) -> StepOutput:
        self.num_steps += 1
        if self.num_steps >= 3:
            raise BackendLostError("the processes have ended")
        return super().execute(batch)


class Losable:
    """A plugin with the one backend "losable"."""

    def __init__(self) -> None:
        self.runner = LosableRunner()

    @hookimpl
    def nanovllm_model_runners(self) -> list[ModelRunnerPlugin]:
        def make(source: ModelSource, config: EngineConfig) -> LosableRunner:
            return self.runner

        by_name = Verdict(False, "only by name")
        return [
            ModelRunnerPlugin(
                name="losable", factory=make, can_load=lambda _: by_name, needs_folder=False, tokenizer="simple-bpe"
            )
        ]


def make_llm(plugins: PluginManager, **options: Any) -> tuple[LLM, LosableRunner]:
    plugin = Losable()
    plugins.register(plugin, "losable")
    return LLM("any", backend="losable", plugins=plugins, **options), plugin.runner


def test_the_step_is_not_tried_again_in_parts(plugins: PluginManager) -> None:
    llm, runner = make_llm(plugins)
    with llm, pytest.raises(BackendLostError, match="the processes have ended"):
        llm.generate(["a", "b", "c", "d"], PARAMS)
    assert runner.num_steps == 3


def test_every_stream_of_the_engine_is_told(plugins: PluginManager) -> None:
    llm, runner = make_llm(plugins)
    with llm:
        streams = [llm.stream("a", PARAMS), llm.stream("b", PARAMS)]
        for stream in streams:
            next(stream)
        for stream in streams:
            with pytest.raises(BackendLostError):
                list(stream)
        assert runner.num_steps == 3
        with pytest.raises(BackendLostError):
            llm.generate("c", PARAMS)
