"""`nanovllm serve` as a user runs it."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from nanovllm import LLM, SamplingParams
from nanovllm.server.settings import ServerSettings

PATIENCE_S = 60
MOCK = ("--backend", "mock", "--model", "none", "--port", "0")


def serve(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """A command that is to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "nanovllm", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env={**os.environ, "COLUMNS": "200", **variables},
    )


@contextmanager
def running(*options: str, **variables: str) -> "Iterator[tuple[subprocess.Popen[str], httpx2.Client]]":
    """A server of the mock, and a client of it."""
    with subprocess.Popen(
        [sys.executable, "-m", "nanovllm", "serve", *MOCK, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().removeprefix("listening on ").strip()
            with httpx2.Client(base_url=url, timeout=PATIENCE_S) as client:
                yield process, client
        finally:
            process.kill()


def test_every_setting_has_an_option_with_a_help() -> None:
    text = serve("--help").stdout
    flags = {
        "api_keys": "--api-key",
        "served_model_names": "--served-model-name",
        "allowed_origins": "--allowed-origin",
        "enable_page": "--no-page",
        "shutdown_timeout_s": "--shutdown-timeout",
    }
    for setting in dataclasses.fields(ServerSettings):
        flag = flags.get(setting.name, "--" + setting.name.removesuffix("_s").replace("_", "-"))
        assert f"  {flag} " in text, flag


def test_it_serves_the_model_under_its_name_with_the_keys_of_a_file_and_ends_with_0(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the team\na-key\n\nanother\n")
    options = ("--api-key-file", str(file), "--served-model-name", "my-model", "--log-format", "json")
    with running(*options, NANOVLLM_API_KEYS="a-third, a-fourth") as (process, client):
        assert client.get("/v1/models").status_code == 401
        for key in ("a-key", "another", "a-third", "a-fourth"):
            models = client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).json()
            assert [model["id"] for model in models["data"]] == ["my-model"]
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0
    assert "a-key" not in log
    assert '"path": "/v1/models"' in log


def test_settings_of_the_engine_reach_it() -> None:
    params = SamplingParams(temperature=2, max_tokens=8, ignore_eos=True)
    expected = LLM("none", backend="mock", seed=7).generate("hello", params, progress=False)[0].outputs[0].text
    body = {"model": "mock", "prompt": "hello", "temperature": 2, "max_tokens": 8, "ignore_eos": True, "priority": 1}
    with running("--seed", "7", "--scheduling-policy", "priority") as (_, client):
        answer = client.post("/v1/completions", json=body).json()
    assert answer["choices"][0]["text"] == expected


@pytest.mark.parametrize(
    ("arguments", "variables", "told"),
    [
        (("--api-key-file", os.devnull), {}, "holds no key"),
        (("--api-key-file", "/no/such/file"), {}, "cannot be read"),
        ((), {"NANOVLLM_API_KEYS": " , "}, "NANOVLLM_API_KEYS holds no key"),
        (("--max-n", "0"), {}, "max_n is 0"),
        (("--chat-template", "no-such-file.jinja"), {}, "--chat-template"),
        (("--host", "192.0.2.1"), {}, "cannot listen"),
    ],
)
def test_a_mistake_ends_it_before_a_model_is_loaded(
    arguments: tuple[str, ...], variables: dict[str, str], told: str
) -> None:
    run = serve(*MOCK, *arguments, **variables)
    assert run.returncode == 2
    assert told in run.stderr
    assert "loading" not in run.stderr
    assert "Traceback" not in run.stderr


def test_a_port_that_is_taken_is_no_traceback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        run = serve(*MOCK, "--port", str(other.getsockname()[1]))
    assert run.returncode == 2
    assert run.stderr.startswith("error: cannot listen on 127.0.0.1 port")


def test_without_the_extra_it_says_what_to_install() -> None:
    program = "import sys; sys.modules['fastapi'] = None; from nanovllm.cli import main; sys.exit(main(['serve']))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "fastapi" in run.stderr
    assert "nanovllm[server]" in run.stderr


def test_the_command_line_loads_nothing_of_the_server_before_it_is_asked_to_serve() -> None:
    heavy = ("fastapi", "starlette", "uvicorn", "prometheus_client", "limits", "opentelemetry")
    program = f"import sys, nanovllm, nanovllm.cli; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
