"""schemathesis finds no answer that our OpenAPI schema does not describe, and no 5xx, whatever it sends."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from client_process import client_process
from live_server import LiveServer, live_server
from mock_llms import CHAT_TEMPLATE, is_idle, mock_llm, until

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
    "negative_data_rejection",
    "ignored_auth",
)
KEY = "a-key-for-clients"


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    """The mock, with so little room that no answer is long."""
    with (
        closing(mock_llm(max_model_len=64)) as llm,
        live_server(llm, chat_template=CHAT_TEMPLATE, tool_parser="hermes", api_keys=(KEY,), max_n=4) as server,
    ):
        yield server


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_every_answer_is_one_that_the_schema_tells_of(server: LiveServer, tmp_path: Path, mode: str) -> None:
    client = client_process("NANOVLLM_SCHEMATHESIS_PYTHON", tmp_path)
    done = client.run(
        *("-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--header", f"Authorization: Bearer {KEY}"),
        *("--checks", ",".join(CHECKS), "--mode", mode, "--phases", "examples,coverage,fuzzing"),
        *("--max-examples", "20", "--seed", "1", "--no-shrink", "--continue-on-failure", "--request-timeout", "10"),
        *("--suppress-health-check", "all", "--warnings", "off"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    until(lambda: is_idle(server.llm))
