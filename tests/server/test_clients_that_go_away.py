"""A client that goes away, reads slowly or meets an error concerns nobody else, and leaves nothing behind."""

import contextlib
import json
import random
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from event_stream import added_up, events_of
from live_server import LiveServer, live_server
from mock_llms import HeldRunner, PoisonedRunner, is_idle, mock_llm, predicted, until

from nanovllm.plugins import ModelRunner

URL = "/v1/completions"
BODY = {"prompt": [1, 2, 3], "max_tokens": 100, "temperature": 0, "ignore_eos": True}


@contextlib.contextmanager
def server_on(runner: ModelRunner | None = None, **settings: Any) -> Iterator[LiveServer]:
    llm = mock_llm(runner)
    try:
        with live_server(llm, **settings) as server:
            yield server
    finally:
        llm.close()


def send(server: LiveServer, **body: Any) -> socket.socket:
    """A request whose answer is left unread."""
    data = json.dumps(body).encode()
    connection = server.connect()
    head = f"POST {URL} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2, 3], [4, 5], [6]]])
def test_a_request_is_aborted_within_a_step_after_its_client_has_gone(stream: bool, prompt: Any) -> None:
    runner = HeldRunner()
    with server_on(runner) as server:
        connection = send(server, **{**BODY, "prompt": prompt}, stream=stream)
        runner.wait_for_step()
        runner.let(3)
        for _ in range(3):
            runner.wait_for_step()  # three are done, and one is held
        connection.close()
        num_steps = server.llm.stats().num_steps
        until(lambda: server.admission.num_requests == 0)  # while the step is held
        runner.let(1)
        until(lambda: is_idle(server.llm))
        assert server.llm.stats().num_steps <= num_steps + 1
        runner.let(1000)
        assert server.answer(URL, **BODY)["usage"]["completion_tokens"] == 100


def test_a_request_whose_client_goes_away_before_its_first_token_is_aborted() -> None:
    runner = HeldRunner()
    with server_on(runner) as server:
        for stream in (False, True):
            connection = send(server, **BODY, stream=stream)
            runner.wait_for_step()
            connection.close()
            until(lambda: server.admission.num_requests == 0)
            runner.let(1)
            until(lambda: is_idle(server.llm))


def test_connections_that_are_dropped_at_random_points_leave_every_block_free() -> None:
    rng = random.Random(7)
    with server_on() as server:

        def drop_one(seed: int) -> None:
            own = random.Random(seed)
            body = {**BODY, "n": own.choice([1, 3]), "temperature": 1, "stream": own.random() < 0.7}
            with send(server, **body) as connection:
                connection.settimeout(own.choice([0.001, 0.01, 0.05]))
                with contextlib.suppress(TimeoutError):
                    while connection.recv(own.choice([1, 500, 5000])):
                        pass

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(drop_one, (rng.random() for _ in range(200))))
        until(lambda: is_idle(server.llm))
        expected = predicted([1, 2, 3], 100)
        assert server.answer(URL, **BODY, return_token_ids=True)["choices"][0]["token_ids"] == expected


def test_a_slow_reader_gets_everything_and_holds_nobody_up() -> None:
    with server_on() as server:
        body = {**BODY, "max_tokens": 60, "n": 4, "temperature": 1, "seed": 1, "logprobs": 20, "stream": True}
        connection = send(server, **body)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        assert server.answer(URL, **BODY)["usage"]["completion_tokens"] == 100
        until(lambda: is_idle(server.llm))  # computed to its end, though nobody has read
        received = b""
        while b"[DONE]" not in received:
            received += connection.recv(4096)
        connection.close()
        text = dechunked(received)
        choices = added_up(events_of(text))
        whole = server.answer(URL, **{**body, "stream": False})["choices"]
        assert [choices[i]["text"] for i in range(4)] == [choice["text"] for choice in whole]
        assert [choices[i]["logprobs"] for i in range(4)] == [choice["logprobs"] for choice in whole]


def dechunked(response: bytes) -> str:
    """The body of an answer in chunked transfer encoding, which may lack its end."""
    rest, body = response.split(b"\r\n\r\n", 1)[1], b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return body.decode()


def test_long_waits_are_bridged_by_comments() -> None:
    runner = HeldRunner()
    with (
        server_on(runner, keep_alive_s=0.05) as server,
        server.client.stream("POST", URL, json={**BODY, "max_tokens": 2, "stream": True}) as response,
    ):
        assert response.status_code == 200
        lines = response.iter_lines()
        assert [next(lines) for _ in range(4)] == [": keep-alive", "", ": keep-alive", ""]
        runner.let(1)
        first = next(line for line in lines if line.startswith("data"))
        assert ": keep-alive" in (next(lines), next(lines))
        runner.let(10)
        rest = [line for line in lines if line.startswith("data")]
        assert rest[-1] == "data: [DONE]"
        assert events_of("\n\n".join([first, *rest]))


def poisoned(position: int) -> PoisonedRunner:
    """A runner that fails when token `position` of the continuation of BODY's prompt is computed."""
    return PoisonedRunner(predicted([1, 2, 3], position + 1)[position])


def test_an_error_in_mid_stream_is_an_error_event_and_no_end() -> None:
    with server_on(poisoned(5)) as server:
        text = server.post(URL, **BODY, stream=True).text
        *chunks, last = [block.removeprefix("data: ") for block in text.split("\n\n") if block]
        error = json.loads(last)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert "fell off the bus" in error["message"]
        assert "[DONE]" not in text
        assert chunks
        assert all(choice["finish_reason"] is None for chunk in chunks for choice in json.loads(chunk)["choices"])
        assert server.answer(URL, **{**BODY, "prompt": [9, 9], "max_tokens": 2})
        until(lambda: is_idle(server.llm))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("position", [0, 3])
def test_an_error_before_an_answer_begins_is_a_500(stream: bool, position: int) -> None:
    if stream and position:
        return  # has begun
    runner = PoisonedRunner(2) if stream else poisoned(position)
    with server_on(runner) as server:
        response = server.post(URL, **BODY, stream=stream)
        assert response.status_code == 500
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        assert response.json()["error"]["type"] == "server_error"
        assert server.answer(URL, **{**BODY, "prompt": [9, 9], "max_tokens": 2})


def test_of_several_prompts_one_that_fails_ends_the_request_and_frees_the_others() -> None:
    with server_on(PoisonedRunner(99)) as server:
        for stream in (False, True):
            response = server.post(URL, **{**BODY, "prompt": [[1, 2], [3, 99], [4]]}, stream=stream)
            assert response.status_code == 500 or "fell off the bus" in response.text
            until(lambda: is_idle(server.llm))


def test_a_closed_model_is_a_500_for_those_that_run_and_those_that_come() -> None:
    runner = HeldRunner()
    with server_on(runner) as server, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.post, URL, **BODY)
        runner.wait_for_step()
        runner.let(1)
        with ThreadPoolExecutor(1) as closer:
            closed = closer.submit(server.llm.close)
            runner.let(1000)
            closed.result()
        assert waiting.result().status_code in (200, 500)
        assert server.post(URL, **BODY).status_code == 500
