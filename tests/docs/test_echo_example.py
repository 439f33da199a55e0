"""The example of docs/writing_a_backend.md runs, and keeps the laws."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nanovllm import LLM, SamplingParams
from nanovllm.plugins.interfaces import ModelRunner
from nanovllm.plugins.manager import PluginManager
from nanovllm.testing import ModelRunnerConformance

EXAMPLE = Path(__file__).parents[2] / "examples" / "echo_backend" / "echo_backend.py"


def load_example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("echo_backend", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["echo_backend"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def plugins() -> PluginManager:
    manager = PluginManager.discover()
    manager.register(load_example(), "echo example")
    return manager


def test_it_continues_a_prompt_with_itself(plugins: PluginManager) -> None:
    with LLM("any", backend="echo", plugins=plugins) as llm:
        output = llm.generate("one token model ", SamplingParams(temperature=0, max_tokens=10))[0]
    assert output.outputs[0].text == "one token model one token model "


class TestEchoRunner(ModelRunnerConformance):
    def make_runner(self) -> ModelRunner:
        runner: ModelRunner = load_example().EchoRunner()
        return runner
