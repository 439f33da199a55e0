"""`tensor_parallel_size` picks a backend that divides a model, and is refused where there is none."""

from typing import Any

import pytest

from backends.mock.runner import MockRunner
from nanovllm import LLM, ConfigError, PluginNotFoundError
from nanovllm.config import EngineConfig
from nanovllm.plugins import ModelRunner, ModelRunnerPlugin, ModelSource, Verdict, hookimpl
from nanovllm.plugins.manager import PluginManager

YES, NO = Verdict(True, "it can"), Verdict(False, "it has no weights")
SOURCE = ModelSource("model", None)


class Backends:
    """A plugin with backends that all make mocks and keep the sizes that they were asked for."""

    def __init__(self, *records: tuple[str, bool, Verdict]) -> None:
        self.records = records
        self.sizes: list[int] = []

    @hookimpl
    def nanovllm_model_runners(self) -> list[ModelRunnerPlugin]:
        def make(source: ModelSource, config: EngineConfig) -> ModelRunner:
            self.sizes.append(config.tensor_parallel_size)
            return MockRunner()

        return [
            ModelRunnerPlugin(
                name=name,
                factory=make,
                can_load=lambda source, verdict=verdict: verdict,
                priority=100 - place,
                tensor_parallel=tensor_parallel,
                tokenizer="simple-bpe",
            )
            for place, (name, tensor_parallel, verdict) in enumerate(self.records)
        ]


def manager_of(backends: Backends) -> PluginManager:
    manager = PluginManager()
    manager.register(backends, "backends")
    return manager


@pytest.mark.parametrize("size", [0, -1, 1.5, "2", True])
def test_what_is_no_count_is_refused(size: Any) -> None:
    with pytest.raises(ConfigError, match="tensor_parallel_size is"):
        EngineConfig(tensor_parallel_size=size)


def test_above_one_only_backends_that_divide_a_model_are_asked() -> None:
    manager = manager_of(Backends(("whole", False, YES), ("unable", True, NO), ("divided", True, YES)))
    assert manager.select_model_runner(SOURCE, None).name == "whole"
    assert manager.select_model_runner(SOURCE, None, tensor_parallel_size=2).name == "divided"
    assert manager.select_model_runner(SOURCE, "unable", tensor_parallel_size=2).name == "unable"
    with pytest.raises(PluginNotFoundError, match="'missing'"):
        manager.select_model_runner(SOURCE, "missing", tensor_parallel_size=2)


def test_a_backend_that_cannot_refuses_it_and_says_which_ones_can(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = manager_of(Backends(("whole", False, YES), ("divided", True, YES)))
    message = "tensor_parallel_size is 3, but backend 'whole' does not divide .*; those that do: divided"
    with pytest.raises(ConfigError, match=message):
        manager.select_model_runner(SOURCE, "whole", tensor_parallel_size=3)
    monkeypatch.setenv("NANOVLLM_BACKEND", "whole")
    with pytest.raises(ConfigError, match=message):
        manager.select_model_runner(SOURCE, None, tensor_parallel_size=3)


def test_where_none_can_it_says_so() -> None:
    manager = manager_of(Backends(("whole", False, YES)))
    with pytest.raises(ConfigError, match=r"no installed backend divides .*; those that do: none"):
        manager.select_model_runner(SOURCE, None, tensor_parallel_size=2)


def test_the_factory_is_told_the_size(plugins: PluginManager) -> None:
    backends = Backends(("divided", True, YES))
    plugins.register(backends, "backends")
    with pytest.raises(ConfigError, match="backend 'mock' does not divide"):
        LLM("tiny-chat", backend="mock", plugins=plugins, tensor_parallel_size=2)
    LLM("tiny-chat", plugins=plugins, tensor_parallel_size=2).close()
    LLM("tiny-chat", backend="divided", plugins=plugins).close()
    assert backends.sizes == [2, 1]
