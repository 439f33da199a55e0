"""Servers that many tests share: the model in the box, and the mock, whose tokens are known in advance."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from live_server import LiveServer, live_server

from nanovllm import LLM, AsyncLLM


@pytest.fixture(scope="session")
def tiny_chat() -> Iterator[LiveServer]:
    """The model in the box."""
    with closing(AsyncLLM("tiny-chat", num_threads=1)) as llm, live_server(llm) as server:
        yield server


@pytest.fixture(scope="session")
def library() -> Iterator[LLM]:
    """The same model without a server."""
    with closing(LLM("tiny-chat", num_threads=1)) as llm:
        yield llm
