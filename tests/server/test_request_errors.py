"""Whatever a client sends that cannot be served is a 400 with OpenAI's error object, for that client alone."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_server import LiveServer, live_server
from mock_llms import CHAT_TEMPLATE, mock_llm

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
GOOD: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": [1, 2, 3], "max_tokens": 2},
    CHAT: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [1]},
    "/v1/tokenize": {"text": "a"},
    "/v1/detokenize": {"token_ids": [1]},
    "/v1/inference": {"sequences": [{"token_ids": [1], "temperature": 0}]},
}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    llm = mock_llm()
    with live_server(llm, chat_template=CHAT_TEMPLATE, max_n=4, max_stop=2, max_prompt_tokens=40) as server:
        yield server
    llm.close()


def error_of(response: Any, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, (response.status_code, response.text)
    assert response.headers["content-type"] == "application/json"
    (error,) = response.json().values()
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    return dict(error)


BOTH = [
    ("temperature", -1),
    ("temperature", "hot"),
    ("temperature", True),
    ("temperature", [1]),
    ("temperature", 10**400),
    ("top_p", 0),
    ("top_p", 1.5),
    ("top_k", -2),
    ("top_k", 1.5),
    ("min_p", 2),
    ("n", 0),
    ("n", 5),
    ("n", "2"),
    ("seed", 2**64),
    ("seed", 1.5),
    ("presence_penalty", 3),
    ("frequency_penalty", -3),
    ("repetition_penalty", 0),
    ("max_tokens", -1),
    ("max_tokens", 1000),
    ("min_tokens", -1),
    ("min_tokens", 3),
    ("stop", [""]),
    ("stop", ["a", "b", "c"]),
    ("stop", 7),
    ("stop", [7]),
    ("logit_bias", {"99999": 1}),
    ("logit_bias", {"word": 1}),
    ("logit_bias", {"1": "much"}),
    ("logit_bias", [1]),
    ("stop_token_ids", [-1]),
    ("stop_token_ids", [99999]),
    ("allowed_token_ids", []),
    ("allowed_token_ids", [99999]),
    ("bad_words", [""]),
    ("stream", "yes"),
    ("stream_options", {"include_usage": True}),
    ("response_format", {"type": "yaml"}),
    ("response_format", {"type": "json_schema"}),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 7}}}),
    ("structured_outputs", {}),
    ("structured_outputs", {"regex": "("}),
    ("structured_outputs", {"json": "{"}),
    ("structured_outputs", {"choice": []}),
    ("structured_outputs", {"reegex": "a"}),
    ("structured_outputs", "json"),
    ("truncate_prompt_tokens", -2),
    ("truncate_prompt_tokens", 0),
    ("truncation_side", "middle"),
    ("prompt_logprobs", 21),
    ("prompt_logprobs", -1),
    ("cache_salt", ""),
    ("cache_salt", 5),
    ("priority", 1),
    ("priority", "high"),
    ("spaces_between_special_tokens", False),
    ("request_id", ""),
]
REFUSED = [
    ("guided_json", {"type": "object"}),
    ("guided_regex", "a"),
    ("guided_choice", ["a"]),
    ("guided_grammar", "root"),
    ("best_of", 2),
    ("use_beam_search", True),
    ("length_penalty", 2.0),
    ("logits_processors", ["x"]),
    ("vllm_xargs", {"a": 1}),
    ("kv_transfer_params", {"a": 1}),
    ("thinking_token_budget", 5),
    ("repetition_detection", {"a": 1}),
    ("logprob_token_ids", [1]),
    ("chat_template", "{{ x }}"),
    ("max_new_tokens", 5),
]
COMPLETIONS_ONLY = [
    ("prompt", None),
    ("prompt", []),
    ("prompt", [[]]),
    ("prompt", ""),
    ("prompt", {}),
    ("prompt", 5),
    ("prompt", [1, "a"]),
    ("prompt", [1.5]),
    ("prompt", [True]),
    ("prompt", [-1]),
    ("prompt", [99999]),
    ("prompt", [1] * 41),
    ("max_tokens", 0),
    ("logprobs", 21),
    ("logprobs", -1),
    ("logprobs", True),
    ("echo", "yes"),
    ("suffix", "end"),
    ("messages", [{"role": "user", "content": "hi"}]),
    ("tools", [{"type": "function"}]),
    ("prompt_embeds", "abc"),
]
CHAT_ONLY = [
    ("messages", None),
    ("messages", []),
    ("messages", "hi"),
    ("messages", [{}]),
    ("messages", [{"role": "user", "content": 5}]),
    ("messages", [{"role": "nobody", "content": "hi"}]),
    ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
    ("messages", [{"role": "user", "content": [{"type": "text", "text": 5}]}]),
    ("messages", [{"role": "user", "content": "long " * 100}]),
    ("logprobs", 1),
    ("top_logprobs", 2),
    ("max_tokens", 0),
    ("max_completion_tokens", 0),
    ("tools", [{"type": "function", "function": {}}]),
    ("tools", [{"type": "retrieval"}]),
    ("tool_choice", "required"),
    ("tool_choice", {"type": "function", "function": {"name": "f"}}),
    ("tool_choice", "perhaps"),
    ("chat_template_kwargs", []),
    ("chat_template_kwargs", {"messages": []}),
    ("functions", [{"name": "f"}]),
    ("function_call", "auto"),
    ("modalities", ["audio"]),
    ("audio", {"voice": "x"}),
    ("prediction", {"type": "content", "content": "x"}),
    ("web_search_options", {"a": 1}),
    ("store", True),
    ("service_tier", "flex"),
    ("echo", True),
]
CASES = [
    *((url, name, value) for url in (COMPLETIONS, CHAT) for name, value in BOTH + REFUSED),
    *((COMPLETIONS, name, value) for name, value in COMPLETIONS_ONLY),
    *((CHAT, name, value) for name, value in CHAT_ONLY),
]


@pytest.mark.parametrize(("url", "name", "value"), CASES, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("stream", [False, True])
def test_a_field_that_cannot_be_honoured_is_a_400_that_names_it(
    server: LiveServer, url: str, name: str, value: Any, stream: bool
) -> None:
    if stream and name in ("stream_options", "stream"):
        return
    error = error_of(server.post(url, **{**GOOD[url], "stream": stream, name: value}))
    field = {"max_tokens": "prompt" if url == COMPLETIONS else "messages"} if value == 1000 else {}
    expected = field.get(name, name)
    assert error["param"] == expected or (error["param"] is None and name in ("structured_outputs", "response_format",
        "chat_template_kwargs")), error  # fmt: skip
    assert server.post(url, **GOOD[url]).status_code == 200


def test_contradictions_are_refused(server: LiveServer) -> None:
    form = {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}
    assert error_of(server.post(COMPLETIONS, **GOOD[COMPLETIONS], **form))["param"] == "response_format"
    both = {"add_generation_prompt": True, "continue_final_message": True}
    assert error_of(server.post(CHAT, **GOOD[CHAT], **both))["param"] == "continue_final_message"
    both = {"stream": True, "prompt_logprobs": 1}
    assert error_of(server.post(COMPLETIONS, **GOOD[COMPLETIONS], **both))["param"] == "prompt_logprobs"
    assert error_of(server.post("/tokenize"))["param"] == "prompt"


@pytest.mark.parametrize("url", GOOD)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"prompt": "half',
        b"nonsense",
        b"null",
        b"[]",
        b'"text"',
        b"7",
        b'{"prompt": NaN, "messages": NaN}',
        b'{"temperature": Infinity}',
        b'{"temperature": 1e999, "prompt": "x", "messages": [{"role": "user", "content": "x"}]}',
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"prompt": ' + b"9" * 100_000 + b"}",
        b"\xef\xbb\xbf{}",
        b"\x00" * 100,
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else str(value),
)
def test_garbage_is_a_400(server: LiveServer, url: str, body: bytes) -> None:
    error_of(server.client.post(url, content=body, headers={"Content-Type": "application/json"}))
    assert server.post(url, **GOOD[url]).status_code == 200


@settings(max_examples=150)
@given(
    url=st.sampled_from(list(GOOD)),
    body=st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    ["prompt", "messages", "role", "content", "n", "stop", "tools", "stream", "token_ids", "text"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    ),
)
def test_no_json_is_the_servers_fault(server: LiveServer, url: str, body: Any) -> None:
    response = server.client.post(url, content=json.dumps(body), headers={"Content-Type": "application/json"})
    if response.status_code != 200:
        error_of(response)


def test_a_body_that_is_not_declared_as_json_is_a_400_that_says_so(server: LiveServer) -> None:
    body = json.dumps(GOOD[COMPLETIONS])
    for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}):
        error = error_of(server.client.post(COMPLETIONS, content=body, headers=headers))
        assert "application/json" in error["message"]


def test_half_a_request_body_is_nobody_elses_trouble(server: LiveServer) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    with server.connect() as half:
        half.sendall(head + b'{"prompt": ')
        assert server.post(COMPLETIONS, **GOOD[COMPLETIONS]).status_code == 200
    assert server.post(COMPLETIONS, **GOOD[COMPLETIONS]).status_code == 200


def test_an_unknown_model_is_a_404(server: LiveServer) -> None:
    for url in (COMPLETIONS, CHAT, "/tokenize", "/detokenize"):
        error = error_of(server.post(url, **GOOD[url], model="gpt-17"), 404)
        assert (error["param"], error["code"]) == ("model", "model_not_found")
        assert server.answer(url, **GOOD[url], model="mock")
        assert server.answer(url, **GOOD[url], model=None)
    error_of(server.client.get("/v1/models/gpt-17"), 404)


def test_unknown_paths_and_methods_have_an_error_object_too(server: LiveServer) -> None:
    error_of(server.client.get("/v1/nothing"), 404)
    error_of(server.client.get(COMPLETIONS), 405)


def test_unknown_fields_are_accepted_and_warned_about_once(
    server: LiveServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "nanovllm.server")
    for _ in range(3):
        for url in (COMPLETIONS, CHAT):
            server.answer(url, **GOOD[url], top_kk=5, guided_json=None, use_beam_search=False, best_of=1, store=False)
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert "'top_kk'" in warnings[0]


def test_long_prompts_are_refused_before_anything_is_computed(server: LiveServer) -> None:
    for body in ({"prompt": [1] * 41}, {"prompt": "x" * 10_000}):
        assert error_of(server.post(COMPLETIONS, **body))["code"] == "context_length_exceeded"
    error = error_of(server.post("/v1/inference", sequences=[{"token_ids": [1] * 41}]))
    assert error["code"] == "context_length_exceeded"


def test_more_continuations_than_the_queue_takes_are_refused_at_once(server: LiveServer) -> None:
    body = {"prompt": [[1]] * 300, "n": 4, "temperature": 1}
    assert error_of(server.post(COMPLETIONS, **body))["param"] == "prompt"
    assert error_of(server.post("/v1/inference", sequences=[{"token_ids": [1]}] * 1025))["param"] == "sequences"


@pytest.mark.parametrize("field", ["presence_penalty", "max_tokens", "stop", "n", "nonsense"])
def test_a_step_takes_no_field_that_has_no_meaning_for_one_token(server: LiveServer, field: str) -> None:
    error = error_of(server.post("/v1/inference", sequences=[{"token_ids": [1], field: 1}]))
    assert error["param"] == "sequences"
    assert field in error["message"]
