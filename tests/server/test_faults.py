"""Faults of clients and of the model concern those that they belong to: the others' answers come as if nothing was.

While faults happen, a bystander is in the middle of a stream, or asks for something of its own.
"""

import asyncio
import contextlib
import gc
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from event_stream import added_up, events_of
from live_server import LiveServer, live_server
from mock_llms import HeldRunner, PoisonedRunner, is_idle, mock_llm, predicted, until

URL = "/v1/completions"
PROMPT = [5, 6, 7]
BODY = {"prompt": PROMPT, "max_tokens": 60, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
MAX_BODY_BYTES = 2**20


@contextlib.contextmanager
def bystander() -> Iterator[LiveServer]:
    """A server on which somebody else's answer is under way; it goes on afterwards, and must be complete."""
    runner = HeldRunner()
    runner.let(3)  # the answer begins, and is held
    llm = mock_llm(runner)
    with (
        contextlib.closing(llm),
        live_server(llm, max_body_bytes=MAX_BODY_BYTES) as server,
        server.client.stream("POST", URL, json={**BODY, "stream": True}) as response,
    ):
        assert response.status_code == 200
        lines = response.iter_lines()
        first = next(line for line in lines if line.startswith("data"))
        try:
            yield server
        finally:
            runner.let(100_000)
        rest = [line for line in lines if line.startswith("data")]
        choices = added_up(events_of("\n\n".join([first, *rest])))
        assert choices[0]["token_ids"] == predicted(PROMPT, 60)
        until(lambda: server.admission.num_requests == 0)
        until(lambda: is_idle(llm))


def request(body: bytes, path: str = URL, *, headers: str = "", length: int | None = None) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n{headers}"
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


def exchange(server: LiveServer, *parts: bytes, ends: bool = False) -> tuple[int, bytes]:
    """Sends what no client library would; returns the status, 0 where there is none, and the body of the answer.
    ends: says that nothing more will come."""
    answer = b""
    with server.connect() as connection, contextlib.suppress(ConnectionError):
        for part in parts:
            connection.sendall(part)
        if ends:
            connection.shutdown(socket.SHUT_WR)
        while received := connection.recv(2**16):
            answer += received
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, body


def nested(text: str, depth: int, inside: str = "") -> bytes:
    opening, closing = text.split("|")
    return (opening * depth + inside + closing * depth).encode()


MANY = ",".join(["1"] * 200_000)
BAD_BODIES = {
    "nothing": b"",
    "garbage": bytes(range(256)),
    "half an object": b'{"prompt": [1, 2',
    "no object": b"[1, 2, 3]",
    "arrays in arrays": nested("[|]", 100_000),
    "objects in objects": nested('{"a":|}', 50_000, "1"),
    "a nest in a field": b'{"prompt": ' + nested("[|]", 100_000) + b"}",
    "a nest in an unknown field": b'{"prompt": [1], "extra": ' + nested("[|]", 100_000) + b"}",
    "invalid UTF-8": b'{"prompt": "\xff\xfe\xfa"}',
    "an overlong encoding": b'{"prompt": "\xc0\xaf"}',
    "half a surrogate pair": b'{"prompt": "\\ud800"}',
    "not a number": b'{"prompt": [1], "temperature": NaN}',
    "an infinite number": b'{"prompt": [1], "temperature": 1e999}',
    "a number of a thousand digits": b'{"prompt": [1], "max_tokens": ' + b"9" * 1000 + b"}",
    "a number of a hundred thousand digits": b'{"prompt": [1], "seed": ' + b"9" * 100_000 + b"}",
    "a token beyond the vocabulary": b'{"prompt": [1, 1000000]}',
    "a token beyond int64": b'{"prompt": [99999999999999999999]}',
    "a prompt that is too long": f'{{"prompt": [{MANY}]}}'.encode(),
    "two objects": b'{"prompt": [1]}{"prompt": [1]}',
    "UTF-16": '{"prompt": [1]}'.encode("utf-16"),
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES)
@pytest.mark.parametrize("path", [URL, "/v1/chat/completions", "/v1/inference", "/tokenize"])
def test_a_bad_body_is_a_400_that_says_why(faulty: LiveServer, path: str, body: bytes) -> None:
    status, answer = exchange(faulty, request(body, path))
    assert status == 400, answer
    error = json.loads(answer)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert 10 < len(error["message"]) < 2000


@pytest.fixture(scope="module")
def faulty() -> Iterator[LiveServer]:
    """One bystander for all bad bodies."""
    with bystander() as server:
        yield server


BAD_SCHEMAS = {
    "deep": nested('{"type":"array","items":|}', 5000, "{}"),
    "recursive without end": b'{"$ref": "#"}',
    "no schema": b'{"type": "no such type"}',
    "a bad pattern": b'{"type": "string", "pattern": "(((("}',
}


@pytest.mark.parametrize("schema", BAD_SCHEMAS.values(), ids=BAD_SCHEMAS)
def test_a_bad_schema_is_a_400(faulty: LiveServer, schema: bytes) -> None:
    body = b'{"prompt": [1], "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": %b}}}'
    status, answer = exchange(faulty, request(body % schema))
    assert status == 400, answer


BAD_REQUESTS = {
    "garbage": b"\x16\x03\x01\x02\x00" + bytes(range(256)) * 4,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a length and chunks": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"
    ),
    "a negative length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "chunks without sizes": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    "a flood of headers": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 200_000 + b"\r\n",
    "a header without end": b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"b" * 2**21,
    "an address without end": b"GET /" + b"a" * 2**21 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("data", BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_what_is_no_request_is_refused_and_the_connection_ends(faulty: LiveServer, data: bytes) -> None:
    status, _ = exchange(faulty, data)
    assert status in (0, 400, 404, 405, 414, 431)  # 0: cut while we were still sending


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_long_is_a_413(faulty: LiveServer, chunked: bool) -> None:
    body = b'{"prompt": "' + b"a" * MAX_BODY_BYTES + b'"}'
    if chunked:
        head = request(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        status, _ = exchange(faulty, head, b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    else:
        status, _ = exchange(faulty, request(body))
    assert status in (0, 413)
    status, answer = exchange(faulty, request(b"", length=MAX_BODY_BYTES + 1))
    assert status == 413
    assert json.loads(answer)["error"]["code"] == "request_too_large"


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("ends", [False, True])
def test_half_a_request_leaves_nothing_behind(faulty: LiveServer, share: float, ends: bool) -> None:
    whole = request(json.dumps(BODY).encode())
    num_requests = faulty.admission.num_requests
    with faulty.connect() as connection:
        connection.sendall(whole[: int(len(whole) * share)])
        if ends:
            connection.shutdown(socket.SHUT_WR)
            connection.recv(100)
    assert faulty.answer("/tokenize", prompt="a")["count"] == 1
    assert faulty.admission.num_requests == num_requests


def test_a_body_that_does_not_come_is_a_408() -> None:
    llm = mock_llm()
    with contextlib.closing(llm), live_server(llm, request_timeout_s=0.5) as server, server.connect() as connection:
        connection.sendall(request(b'{"prompt": ', length=100))
        assert server.answer(URL, **BODY)["choices"][0]["token_ids"] == predicted(PROMPT, 60)
        answer = b""
        while received := connection.recv(2**16):
            answer += received
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408")
        assert "has not come" in json.loads(body)["error"]["message"]


def test_a_request_that_takes_too_long_is_told_and_its_blocks_come_back() -> None:
    runner = HeldRunner()
    llm = mock_llm(runner)
    with contextlib.closing(llm), live_server(llm, request_timeout_s=0.3) as server:
        runner.let(1)
        response = server.post(URL, **BODY)
        assert response.status_code == 504
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        runner.let(2)  # the step that was held, and one
        stream = server.post(URL, **BODY, stream=True)
        assert stream.status_code == 200
        last = stream.text.split("\n\n")[-2]
        assert "error" in json.loads(last.removeprefix("data: "))
        assert "[DONE]" not in stream.text
        runner.let(1000)
        until(lambda: is_idle(llm))
        assert server.answer(URL, **{**BODY, "max_tokens": 2})


def test_pipelined_requests_are_answered_in_order(faulty: LiveServer) -> None:
    texts = [f"{'a ' * number}a" for number in range(20)]
    requests = [request(json.dumps({"prompt": text}).encode(), "/tokenize") for text in texts]
    kept = [one.replace(b"Connection: close\r\n", b"") for one in requests[:-1]]
    with faulty.connect() as connection:
        connection.sendall(b"".join([*kept, requests[-1]]))
        answer = b""
        while received := connection.recv(2**16):
            answer += received
    bodies = [part.split(b"\r\n\r\n", 1)[1] for part in answer.split(b"HTTP/1.1 200 OK\r\n")[1:]]
    counts = [len(json.loads(body)["tokens"]) for body in bodies]
    assert counts == [len(faulty.answer("/tokenize", prompt=text)["tokens"]) for text in texts]


def test_a_stream_whose_client_sends_more_meanwhile_goes_on() -> None:
    llm = mock_llm()
    with contextlib.closing(llm), live_server(llm) as server, server.connect() as connection:
        first = request(json.dumps({**BODY, "stream": True}).encode()).replace(b"Connection: close\r\n", b"")
        connection.sendall(first + request(json.dumps(BODY).encode()))
        answer = b""
        while received := connection.recv(2**16):
            answer += received
        stream, whole = answer.split(b"HTTP/1.1 200 OK\r\n")[1:]
        assert stream.count(b"data: [DONE]") == 1
        body = json.loads(whole.split(b"\r\n\r\n", 1)[1])
        assert body["choices"][0]["token_ids"] == predicted(PROMPT, 60)


def test_a_slow_reader_holds_nobody_up_and_its_answer_stays_small() -> None:
    """What it does not read is not made into events: it waits in the engine's form, once."""
    llm = mock_llm(num_kv_blocks=4096)
    body = {**BODY, "n": 24, "temperature": 1, "max_tokens": 240, "logprobs": 20, "stream": True}  # some 7 MB
    with contextlib.closing(llm), live_server(llm) as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(request(json.dumps(body).encode()))
        assert server.answer(URL, **BODY)["choices"][0]["token_ids"] == predicted(PROMPT, 60)
        until(lambda: is_idle(llm))  # all computed, though nobody reads
        assert server.admission.num_requests == 1
        # type(): isinstance asks for __class__, which some objects of other libraries answer with a warning
        transports = [one for one in gc.get_objects() if issubclass(type(one), asyncio.WriteTransport)]
        unsent = [one.get_write_buffer_size() for one in transports]
        assert 0 < max(unsent) < 2**20  # beside what the system holds, some 4 MB at most
        assert server.answer(URL, **BODY)["choices"][0]["token_ids"] == predicted(PROMPT, 60)
        connection.close()
        until(lambda: server.admission.num_requests == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_of_the_model_ends_the_requests_that_it_was_about(stream: bool) -> None:
    """A third of forty requests hold a token on which the runner raises: at the beginning, or in mid-stream."""
    poison = next(token for token in predicted([1, 400], 30)[10:] if token not in predicted(PROMPT, 60))
    prompts = [[1, 400], PROMPT, [*PROMPT, 3], [2, poison]] * 10
    llm = mock_llm(PoisonedRunner(poison))
    with contextlib.closing(llm), live_server(llm) as server, ThreadPoolExecutor(len(prompts)) as pool:
        bodies = [{**BODY, "prompt": prompt, "stream": stream} for prompt in prompts]
        responses = list(pool.map(lambda body: server.post(URL, **body), bodies))
        for prompt, response in zip(prompts, responses, strict=True):
            expected = predicted(prompt, 60)
            if poison in [*prompt, *expected[:-1]]:
                assert response.status_code == 500 or (stream and '"error":' in response.text.replace(" ", ""))
                assert "fell off the bus" in response.text
                assert "[DONE]" not in response.text
            else:
                assert response.status_code == 200
                choices = added_up(events_of(response.text)) if stream else response.json()["choices"]
                assert choices[0]["token_ids"] == expected
        until(lambda: is_idle(llm))
        assert server.admission.num_requests == 0
