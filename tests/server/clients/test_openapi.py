"""/openapi.json tells what generators of clients need: which routes want a key, and how each refuses."""

from typing import Any

import httpx2
import jsonschema
import pytest
from live_server import LiveServer

OPEN = {"/health", "/ready"}


@pytest.fixture(scope="module")
def paths(keyed_chat: LiveServer) -> Any:
    return keyed_chat.client.get("/openapi.json").json()["paths"]


def test_exactly_the_routes_that_want_a_key_say_so(keyed_chat: LiveServer, paths: Any) -> None:
    with httpx2.Client(base_url=keyed_chat.url) as stranger:
        for path, operations in paths.items():
            for method, operation in operations.items():
                wants_key = stranger.request(method, path, json={}).status_code == 401
                assert wants_key == bool(operation.get("security")), path
                assert wants_key == (path not in OPEN)


def test_without_keys_no_route_wants_one(tiny_chat: LiveServer) -> None:
    document = tiny_chat.client.get("/openapi.json").json()
    assert not any(operation.get("security") for path in document["paths"].values() for operation in path.values())
    assert "securitySchemes" not in document["components"]


def test_every_route_tells_the_form_of_its_errors(paths: Any) -> None:
    for path, operations in paths.items():
        for operation in operations.values():
            assert {"4XX", "5XX"} <= set(operation["responses"]), path
            assert "422" not in operation["responses"]


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/completions", {"prompt": "The capital of France is"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
    ],
)
def test_the_events_of_a_stream_have_the_form_that_it_tells(
    keyed_chat: LiveServer, paths: Any, path: str, asked: Any
) -> None:
    stream = paths[path]["post"]["responses"]["200"]["content"]["text/event-stream"]
    assert set(stream) == {"itemSchema"}
    events = keyed_chat.post(path, **asked, max_tokens=4, stream=True).text.strip().split("\n\n")
    assert len(events) >= 2  # [DONE] stands alone; a client that reads slowly gets all text before it as one
    for event in events:
        name, _, data = event.partition(": ")
        jsonschema.validate({name: data}, stream["itemSchema"])
