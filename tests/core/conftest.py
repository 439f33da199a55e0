"""Fixtures of the core's tests: plugins without entry points, and engines on the mock."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import backends.mock.plugin
import backends.tokenizers.plugin
from nanovllm import LLM
from nanovllm.plugins.manager import BACKEND_VARIABLE, PluginManager


@pytest.fixture(autouse=True)
def _no_backend_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BACKEND_VARIABLE, raising=False)


@pytest.fixture
def plugins() -> PluginManager:
    """Only the mock and the tokenizers, whatever is installed."""
    manager = PluginManager()
    manager.register(backends.mock.plugin, "mock")
    manager.register(backends.tokenizers.plugin, "tokenizers")
    return manager


@pytest.fixture
def make_llm(plugins: PluginManager) -> Iterator[Callable[..., LLM]]:
    """LLMs on the mock, with small blocks and small limits; closed after the test."""
    made = []

    def make(**options: Any) -> LLM:
        defaults = {"backend": "mock", "block_size": 4, "num_kv_blocks": 64, "max_model_len": 128}
        made.append(LLM("mock", plugins=plugins, **{**defaults, **options}))
        return made[-1]

    yield make
    for llm in made:
        llm.close()
