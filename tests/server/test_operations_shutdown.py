"""How a server ends: real processes, real signals."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import httpx2
import pytest

from nanovllm.errors import ConfigError
from nanovllm.server.run import open_socket

PATIENCE_S = 60
STREAM = {"model": "mock", "prompt": [5, 6, 7], "max_tokens": 240, "temperature": 0, "ignore_eos": True, "stream": True}


class HeldServer:
    """held_server.py, started; url: of it."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:"), line
        self.url = line.removeprefix("listening on ").strip()
        self.client = httpx2.Client(base_url=self.url, timeout=PATIENCE_S)

    def let(self, num_steps: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{num_steps}\n")
        self.process.stdin.flush()

    def let_the_engine_stop(self) -> None:
        """It does after the step that is being computed, which may be the next, if the order comes later."""
        for _ in range(100):
            with suppress(BrokenPipeError):  # it has ended already
                self.let(1)
            try:
                self.process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
            return

    def wait_for_log(self, text: str) -> None:
        assert self.process.stderr is not None
        assert any(text in line for line in self.process.stderr), f"the log does not say {text!r}"


@contextmanager
def held_server(shutdown_timeout_s: float) -> Iterator[HeldServer]:
    here = Path(__file__)
    root = here.parents[2]
    paths = {"PYTHONPATH": os.pathsep.join((str(root), str(here.parent)))}
    with subprocess.Popen(
        [sys.executable, here.with_name("held_server.py"), str(shutdown_timeout_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **paths},
    ) as process:
        try:
            server = HeldServer(process)
            with closing(server.client):
                yield server
        finally:
            process.kill()


@contextmanager
def running_stream(server: HeldServer) -> Iterator[Iterator[str]]:
    """The lines of an event stream that has begun."""
    server.let(1)
    with server.client.stream("POST", "/v1/completions", json=STREAM) as response:
        lines = (line for line in response.iter_lines() if line)
        assert next(lines).startswith("data: {")
        yield lines


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_with_the_signal_and_exit_code_0(kind: signal.Signals) -> None:
    with held_server(30) as server:
        assert server.client.get("/ready").status_code == 200
        server.process.send_signal(kind)
        assert server.process.wait(PATIENCE_S) == 0


def test_a_running_answer_is_finished_while_new_requests_are_refused() -> None:
    with held_server(30) as server:
        with running_stream(server) as lines:
            server.process.send_signal(signal.SIGTERM)
            server.wait_for_log("SIGTERM: 1 requests")
            assert server.client.get("/health").status_code == 200
            assert server.client.get("/ready").status_code == 503
            refused = server.client.post("/v1/completions", json=STREAM)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "server_shutting_down"
            assert "Retry-After" in refused.headers
            server.let(1000)
            assert list(lines)[-1] == "data: [DONE]"
        assert server.process.wait(PATIENCE_S) == 0


def test_an_answer_that_is_not_finished_in_time_ends_with_an_error_event() -> None:
    with held_server(0.2) as server:
        with running_stream(server) as lines:
            server.process.send_signal(signal.SIGTERM)
            server.wait_for_log("aborting them")
            server.let_the_engine_stop()
            last = list(lines)[-1]
            assert last.startswith('data: {"error"'), last
        assert server.process.wait(PATIENCE_S) == 0


def test_a_second_signal_ends_the_server_at_once_and_no_answer_looks_complete() -> None:
    with held_server(1000) as server, running_stream(server) as lines:
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_log("SIGTERM: 1 requests")
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_log("ending at once")
        server.let_the_engine_stop()
        assert server.process.wait(PATIENCE_S) == 0
        got = []
        with suppress(httpx2.TransportError):
            got += lines
        assert "data: [DONE]" not in got


def test_a_port_that_is_taken_is_told_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port}: .*--port"):
            open_socket("127.0.0.1", port)


def test_a_host_that_is_none_of_this_machine_is_told() -> None:
    with pytest.raises(ConfigError, match="cannot listen on 192"):
        open_socket("192.0.2.1", 0)
