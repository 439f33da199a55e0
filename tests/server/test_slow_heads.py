"""A connection whose next request does not come is closed; one that is being answered is not."""

import contextlib
import time
from collections.abc import Iterator

import pytest
from live_server import LiveServer, live_server
from mock_llms import HeldRunner, mock_llm

LIMIT_S = 0.5
HEAD = b"GET /version HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    llm = mock_llm()
    with contextlib.closing(llm), live_server(llm, head_timeout_s=LIMIT_S) as server:
        yield server


@pytest.mark.parametrize("sent", [b"", HEAD, HEAD[:5]])
def test_it_is_closed_when_its_first_head_is_late(server: LiveServer, sent: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(sent)
        assert connection.recv(1) == b""


def test_it_is_closed_when_the_head_of_a_further_request_is_late(server: LiveServer) -> None:
    with server.connect() as connection:
        connection.sendall(HEAD + b"\r\n")
        answer = b""
        while b"}" not in answer:
            answer += connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200")
        connection.sendall(HEAD)
        started_s = time.monotonic()
        assert connection.recv(1) == b""
        assert time.monotonic() - started_s < 4  # uvicorn's own limit on silence, 5 s, ended with the first byte


def test_an_answer_that_takes_longer_is_not_cut() -> None:
    runner = HeldRunner()
    runner.let(2)
    llm = mock_llm(runner)
    body = {"prompt": [5, 6, 7], "max_tokens": 40, "temperature": 0, "ignore_eos": True, "stream": True}
    with (
        contextlib.closing(llm),
        live_server(llm, head_timeout_s=LIMIT_S) as server,
        server.client.stream("POST", "/v1/completions", json=body) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        time.sleep(2 * LIMIT_S)  # it is the passing of this time that must change nothing
        runner.let(100_000)
        assert "data: [DONE]" in list(lines)
