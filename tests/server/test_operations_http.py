"""What every HTTP request passes: keys, limits, ids, paths, and the log, on a real server over real sockets."""

import json
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import httpx2
import pytest
from live_server import LiveServer, live_server
from mock_llms import MAX_MODEL_LEN, HeldRunner, is_idle, mock_llm, until

from nanovllm import AsyncLLM

BODY = {"model": "mock", "prompt": [5, 6, 7], "max_tokens": 4, "temperature": 0}
KEYS = ("a-first-key", "a-second-key")
EVERY_KEYED_ROUTE = ("/v1/models", "/metrics", "/version", "/tokenizer_info", "/openapi.json", "/no/such/route")


@pytest.fixture(scope="module")
def llm() -> Iterator[AsyncLLM]:
    with closing(mock_llm()) as llm:
        yield llm


@pytest.fixture(scope="module")
def server(llm: AsyncLLM) -> Iterator[LiveServer]:
    with live_server(llm, max_body_bytes=2000) as server:
        yield server


@pytest.fixture(scope="module")
def keyed(llm: AsyncLLM) -> Iterator[LiveServer]:
    with live_server(llm, api_keys=KEYS, root_path="/llm") as server:
        yield server


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def is_error(response: httpx2.Response, status: int) -> bool:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return response.status_code == status


# -- keys ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EVERY_KEYED_ROUTE)
def test_every_route_but_the_probes_needs_a_key(keyed: LiveServer, path: str) -> None:
    for response in (keyed.client.get(path), keyed.client.get(f"{path}/"), keyed.client.get(f"/llm{path}")):
        assert is_error(response, 401)
        assert response.headers["WWW-Authenticate"] == "Bearer"
    assert keyed.client.head(path).status_code == 401
    assert keyed.client.post(path, json={}).status_code == 401
    assert keyed.client.get(path, headers=bearer(KEYS[1])).status_code != 401


@pytest.mark.parametrize("path", ["/health", "/ready", "/health/", "/llm/ready"])
def test_probes_need_no_key(keyed: LiveServer, path: str) -> None:
    assert keyed.client.get(path).status_code == 200
    assert keyed.client.post(path).status_code == 401


@pytest.mark.parametrize("path", ["/tokenize", "/v1/completions", "/v1/chat/completions", "/v1/inference"])
def test_nothing_is_computed_without_a_key(keyed: LiveServer, path: str) -> None:
    assert is_error(keyed.post(path, **BODY), 401)


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer a-first-ke", "Basic a-first-key", "a-first-key"])
def test_a_header_that_holds_no_key_of_ours_is_refused(keyed: LiveServer, value: str) -> None:
    assert is_error(keyed.client.get("/v1/models", headers={"Authorization": value}), 401)


@pytest.mark.parametrize("key", KEYS)
def test_each_of_several_keys_opens_the_server(keyed: LiveServer, key: str) -> None:
    assert keyed.client.post("/v1/completions", json=BODY, headers=bearer(key)).status_code == 200
    assert keyed.client.get("/v1/models", headers={"Authorization": f"bearer {key}"}).status_code == 200


def test_the_digest_of_a_key_is_no_key(keyed: LiveServer) -> None:
    from nanovllm.server.settings import key_digest

    assert keyed.client.get("/v1/models", headers=bearer(key_digest(KEYS[0]))).status_code == 401


# -- limits -------------------------------------------------------------------------------------------------------


def test_a_key_that_has_used_up_its_requests_is_told_when_to_come_back(llm: AsyncLLM) -> None:
    with live_server(llm, api_keys=KEYS, requests_per_minute=2) as server:
        for remaining in (1, 0):
            response = server.client.post("/v1/completions", json=BODY, headers=bearer(KEYS[0]))
            assert response.status_code == 200
            assert response.headers["x-ratelimit-limit-requests"] == "2"
            assert response.headers["x-ratelimit-remaining-requests"] == str(remaining)
            assert 0 < float(response.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 60
        refused = server.client.post("/v1/completions", json=BODY, headers=bearer(KEYS[0]))
        assert is_error(refused, 429)
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert server.client.get("/v1/models", headers=bearer(KEYS[0])).status_code == 200
        assert server.client.post("/v1/completions", json=BODY, headers=bearer(KEYS[1])).status_code == 200


def test_tokens_are_charged_exactly_and_the_next_request_pays_for_an_overdraft(llm: AsyncLLM) -> None:
    with live_server(llm, tokens_per_minute=10) as server:
        first = server.post("/v1/completions", **BODY)
        assert first.json()["usage"]["total_tokens"] == 7
        second = server.post("/v1/completions", **BODY)  # 3 tokens are left, and its prompt has 3
        assert second.status_code == 200
        assert second.headers["x-ratelimit-remaining-tokens"] == "0"
        assert is_error(server.post("/v1/completions", **BODY), 429)


def test_a_body_of_the_limit_is_taken_and_one_byte_more_is_not(server: LiveServer) -> None:
    text = json.dumps(BODY)
    for num_bytes, status in ((2000, 200), (2001, 413)):
        body = text + " " * (num_bytes - len(text))
        headers = {"Content-Type": "application/json"}
        assert server.client.post("/v1/completions", content=body, headers=headers).status_code == status
        chunks = iter([body[:500].encode(), body[500:].encode()])  # without a Content-Length
        response = server.client.post("/v1/completions", content=chunks, headers=headers)
        assert response.status_code == status
    assert is_error(response, 413)


def test_a_body_without_end_is_refused_while_it_comes_in(server: LiveServer) -> None:
    with server.connect() as sock:
        sock.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n" + (b"200\r\n" + b" " * 512 + b"\r\n") * 5
        )
        answer = b"".join(iter(lambda: sock.recv(65536), b""))  # until the server closes the connection
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()


def test_a_body_that_does_not_come_in_is_given_up(llm: AsyncLLM) -> None:
    with live_server(llm, request_timeout_s=0.2) as server, server.connect() as sock:
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"error"' in answer


def test_a_request_that_takes_too_long_is_aborted_and_told_so() -> None:
    runner = HeldRunner()
    with closing(mock_llm(runner)) as llm, live_server(llm, request_timeout_s=0.2) as server:
        response = server.post("/v1/completions", **BODY)
        assert is_error(response, 504)
        assert response.headers["x-should-retry"] == "false"
        runner.let(100)
        until(lambda: is_idle(llm))


def test_an_event_stream_that_takes_too_long_ends_with_an_error_event() -> None:
    runner = HeldRunner()
    with closing(mock_llm(runner)) as llm, live_server(llm, request_timeout_s=1.0) as server:
        runner.let(2)
        events = server.post("/v1/completions", **BODY, stream=True).text.strip().split("\n\n")
        assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "request_timeout"
        assert "[DONE]" not in events[-1]
        runner.let(100)
        until(lambda: is_idle(llm))


def test_a_full_server_refuses_and_serves_again_when_somebody_has_left() -> None:
    runner = HeldRunner()
    with closing(mock_llm(runner)) as llm, live_server(llm, max_queued_requests=1) as server:
        answers: list[httpx2.Response] = []
        thread = threading.Thread(target=lambda: answers.append(server.post("/v1/completions", **BODY)))
        thread.start()
        runner.wait_for_step()
        refused = server.post("/v1/completions", **BODY)
        assert is_error(refused, 503)
        assert int(refused.headers["Retry-After"]) >= 1
        assert "requests_rejected_total" in server.client.get("/metrics").text
        runner.let(100)
        thread.join()
        assert answers[0].status_code == 200
        assert server.post("/v1/completions", **BODY).status_code == 200


# -- ids, paths, origins, log -------------------------------------------------------------------------------------


def test_a_request_id_that_is_sent_comes_back_and_else_one_is_made(server: LiveServer) -> None:
    sent = server.client.get("/health", headers={"X-Request-Id": "my-id.7"})
    assert sent.headers["X-Request-Id"] == "my-id.7"
    made = {server.client.get("/no/such/route").headers["X-Request-Id"] for _ in range(3)}
    assert len(made) == 3
    unfit = server.client.get("/health", headers={"X-Request-Id": "a b\tc" + "x" * 200})
    assert " " not in unfit.headers["X-Request-Id"]


@pytest.mark.parametrize("path", ["/health", "/ready", "/version", "/metrics", "/v1/models", "/tokenizer_info"])
def test_head_is_get_without_a_body_with_and_without_a_slash_at_the_end(server: LiveServer, path: str) -> None:
    got = server.client.get(path)
    assert got.status_code == 200
    for same in (path, f"{path}/"):
        head = server.client.head(same)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == got.headers["content-type"]
        assert server.client.get(same, follow_redirects=False).status_code == 200


def test_head_of_a_route_that_only_posts_is_not_allowed(server: LiveServer) -> None:
    assert server.client.head("/v1/completions").status_code == 405
    assert server.client.post("/v1/completions/", json=BODY).status_code == 200


def test_browsers_of_other_origins_are_served_only_where_they_are_named(llm: AsyncLLM, server: LiveServer) -> None:
    headers = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in server.client.options("/v1/models", headers=headers).headers
    with live_server(llm, api_keys=KEYS, allowed_origins=("https://a.example",)) as named:
        preflight = named.client.options("/v1/completions", headers=headers)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://a.example"
        other = named.client.options("/v1/completions", headers={**headers, "Origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers


def test_the_log_tells_of_each_request_and_of_no_prompt_and_no_key(
    keyed: LiveServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="nanovllm.access"):
        body = {"model": "mock", "prompt": "a private matter", "max_tokens": 3, "ignore_eos": True}
        headers = {**bearer(KEYS[0]), "X-Request-Id": "the-id"}
        answer = keyed.client.post("/v1/completions?q=private", json=body, headers=headers).json()
        until(lambda: any("the-id" in record.getMessage() for record in caplog.records))
    (record,) = [record for record in caplog.records if "the-id" in record.getMessage()]
    fields = record.__dict__["fields"]
    assert (fields["method"], fields["path"], fields["status"]) == ("POST", "/v1/completions", 200)
    assert fields["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert fields["generation_tokens"] == answer["usage"]["completion_tokens"] == 3
    assert fields["complete"] is True
    for secret in ("private", KEYS[0], "first-key"):
        assert secret not in caplog.text + repr(fields)


def test_a_path_cannot_forge_a_line_of_the_log(server: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="nanovllm.access"):
        server.client.get("/a%0aINFO%20forged")
        until(lambda: "forged" in caplog.text)
    assert all("\n" not in record.getMessage() for record in caplog.records)


def test_a_client_that_goes_away_gives_its_place_back() -> None:
    runner = HeldRunner()
    with closing(mock_llm(runner)) as llm, live_server(llm, max_queued_requests=1) as server:
        body = json.dumps({**BODY, "stream": True, "max_tokens": MAX_MODEL_LEN - 10, "ignore_eos": True}).encode()
        request = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        with server.connect() as sock:
            sock.sendall(request + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            runner.wait_for_step()
            sock.shutdown(socket.SHUT_RDWR)
        runner.let(1)
        runner.let(1000)
        until(lambda: is_idle(llm))
        until(lambda: server.post("/v1/completions", **BODY).status_code == 200)
        assert 'finished_reason="abort",model_name="mock"} 1.0' in server.client.get("/metrics").text
