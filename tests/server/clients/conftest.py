"""The model in the box as clients meet it: behind a key, with its tool calls and thoughts read."""

from collections.abc import Iterator

import pytest
from live_server import LiveServer, live_server

KEY = "a-key-for-clients"


@pytest.fixture(scope="session")
def keyed_chat(tiny_chat: LiveServer) -> Iterator[LiveServer]:
    with live_server(tiny_chat.llm, api_keys=(KEY,), tool_parser="hermes", reasoning_parser="think") as server:
        server.client.headers["Authorization"] = f"Bearer {KEY}"
        yield server
