"""HTTP as curl, old proxies and browsers speak it."""

import json
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from live_server import LiveServer, live_server

BODY = json.dumps({"prompt": "The capital of France is", "max_tokens": 2, "temperature": 0}).encode()
STREAM = json.dumps({**json.loads(BODY), "stream": True}).encode()
JSON_TYPE = b"Host: x\r\nContent-Type: application/json\r\n"
ORIGIN = "https://a.example"


def exchange(server: LiveServer, sent: bytes) -> bytes:
    """What comes back until the server closes the connection."""
    with server.connect() as sock:
        sock.sendall(sent)
        return b"".join(iter(lambda: sock.recv(65536), b""))


def post(body: bytes, version: bytes = b"1.1", more: bytes = b"") -> bytes:
    length = b"Content-Length: %d\r\n" % len(body)
    return b"POST /v1/completions HTTP/" + version + b"\r\n" + JSON_TYPE + length + more + b"\r\n" + body


def test_a_body_is_waited_for_once_the_client_was_told_to_go_on(tiny_chat: LiveServer) -> None:
    head, _, _ = post(BODY, more=b"Expect: 100-continue\r\nConnection: close\r\n").partition(b"\r\n\r\n")
    with tiny_chat.connect() as sock:
        sock.sendall(head + b"\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 100 ")
        sock.sendall(BODY)
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b" Paris." in answer


def test_a_client_that_is_refused_is_not_told_to_send_its_body(keyed_chat: LiveServer) -> None:
    head, _, _ = post(BODY, more=b"Expect: 100-continue\r\n").partition(b"\r\n\r\n")
    with keyed_chat.connect() as sock:
        sock.sendall(head + b"\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("body", [BODY, STREAM])
def test_http_1_0_is_answered_without_chunks_and_ends_the_connection(tiny_chat: LiveServer, body: bytes) -> None:
    answer = exchange(tiny_chat, post(body, b"1.0"))
    head, _, content = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"transfer-encoding" not in head.lower()
    if body is BODY:
        assert json.loads(content)["choices"][0]["text"] == " Paris."
    else:
        assert content.startswith(b"data: {")
        assert content.endswith(b"data: [DONE]\n\n")


def test_a_body_in_chunks_of_one_byte(tiny_chat: LiveServer) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"
    head = b"POST /v1/completions HTTP/1.1\r\n" + JSON_TYPE + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert b" Paris." in exchange(tiny_chat, head + chunks)


def test_requests_that_do_not_wait_for_each_other_are_answered_in_order(tiny_chat: LiveServer) -> None:
    sent = post(BODY) + b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n" + post(STREAM, more=b"Connection: close\r\n")
    answer = exchange(tiny_chat, sent)
    assert answer.count(b"HTTP/1.1 200 ") == 3
    assert answer.index(b'"text_completion"') < answer.index(b'"version"') < answer.index(b"data: {")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(
    "options", [("--http1.0",), ("--http1.1",), ("--http2",), ("--header", "Expect: 100-continue")]
)
@pytest.mark.parametrize("data", [BODY, STREAM])
def test_curl_gets_the_answer(tiny_chat: LiveServer, options: tuple[str, ...], data: bytes) -> None:
    given = ["curl", "--silent", "--show-error", "--fail", "--no-buffer", "--max-time", "30", *options]
    asked = ["--header", "Content-Type: application/json", "--data-binary", "@-", f"{tiny_chat.url}/v1/completions/"]
    done = subprocess.run([*given, *asked], input=data, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert b"Paris" in done.stdout


@pytest.fixture(scope="module")
def named(tiny_chat: LiveServer) -> Iterator[LiveServer]:
    with live_server(tiny_chat.llm, api_keys=("a-key",), allowed_origins=(ORIGIN,)) as server:
        yield server


def test_a_page_of_another_origin_may_send_its_key_and_openais_headers(named: LiveServer) -> None:
    asked = "authorization,content-type,x-stainless-lang,x-request-id"
    headers = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": asked}
    preflight = named.client.options("/v1/chat/completions", headers=headers)
    assert preflight.status_code == 200
    assert set(asked.split(",")) <= set(preflight.headers["access-control-allow-headers"].replace(" ", "").split(","))


@pytest.mark.parametrize(("key", "status"), [("a-key", 200), ("none", 401)])
def test_a_page_of_another_origin_may_read_answers_and_refusals(named: LiveServer, key: str, status: int) -> None:
    headers = {"Origin": ORIGIN, "Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    answer = named.client.post("/v1/completions", content=STREAM, headers=headers)
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()
    assert "x-ratelimit-remaining-tokens" in answer.headers["access-control-expose-headers"].lower()


def test_by_default_no_page_of_another_origin_may_read_an_answer(tiny_chat: LiveServer) -> None:
    headers = {"Origin": ORIGIN, "Content-Type": "application/json"}
    answer = tiny_chat.client.post("/v1/completions", content=BODY, headers=headers)
    assert not any(name.startswith("access-control-") for name in answer.headers)
    headers = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    assert tiny_chat.client.options("/v1/completions", headers=headers).status_code in (400, 405)
