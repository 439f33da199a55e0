"""README and the guides say what is true: their commands and code run, the files that they name exist."""

import contextlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from dataclasses import fields
from pathlib import Path

import pytest

from nanovllm import EngineConfig, SamplingParams

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_it_starts_with_two_commands() -> None:
    assert [block.strip() for block in blocks("bash")] == [
        """pip install -e '.[cpu]' && python -m nanovllm generate "What is the capital of France?\"""",
        "pip install -e '.[cpu,test]' && python -m pytest",
    ]


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOVLLM_CACHE", str(tmp_path))
    (example,) = blocks("python")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(example, "README.md", "exec"), {})
    assert printed.getvalue() == "The capital of France is Paris. stop\n7 + 5 = 12. stop\n"


def test_the_guide_to_requests_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOVLLM_CACHE", str(tmp_path))
    names: dict[str, object] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for example in blocks("python", (ROOT / "docs" / "requests.md").read_text(encoding="utf-8")):
            exec(compile(example, "requests.md", "exec"), names)
    first, *_, last = printed.getvalue().splitlines()
    assert set(json.loads(first)) >= {"city"}
    assert last == "The capital of France is Paris."


def test_the_guide_to_requests_names_every_sampling_parameter() -> None:
    guide = (ROOT / "docs" / "requests.md").read_text(encoding="utf-8")
    missing = [field.name for field in fields(SamplingParams) if f"`{field.name}`" not in guide]
    assert missing == []


def commands() -> list[str]:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [line[2:] for line in lines if line.startswith("$ ")]


def test_the_commands_run(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny-chat").symlink_to(ROOT / "models" / "tiny-chat")
    scripts = Path(sys.executable).parent
    environment = {
        **os.environ,
        "NANOVLLM_CACHE": str(tmp_path / "cache"),
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
    }
    assert len(commands()) == 10
    for command in commands():
        if " serve " in command:
            answer_and_end(shlex.split(command, comments=True), tmp_path, environment)
            continue
        run = subprocess.run(
            shlex.split(command, comments=True),
            cwd=tmp_path,
            env=environment,
            input="What is the capital of France?\n",  # for chat
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, f"{command}: {run.stderr}"
        assert run.stdout, command
    assert (tmp_path / "models" / "tiny-chat-onnx" / "model_info.json").is_file()


def answer_and_end(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Runs a command that serves until it is told to end."""
    command[command.index("--port") + 1] = "0"  # the one that README names may be taken
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            url = server.stdout.readline().removeprefix("listening on ").strip()
            with urllib.request.urlopen(f"{url}/health", timeout=30) as response:
                assert response.status == 200
        finally:
            server.send_signal(signal.SIGTERM)
    assert server.returncode == 0


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))])
def test_the_files_that_it_names_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [(ROOT / page).parent / link for link in re.findall(r"\]\(([^)#:]+)\)", text)]
    bare = re.findall(r"`([\w/]+\.py)`", text)
    named = [next((p for p in (ROOT / n, ROOT / "nanovllm" / n) if p.exists()), ROOT / n) for n in bare]
    missing = [str(path) for path in links + named if not path.exists()]
    assert missing == []


def test_every_option_of_the_engine_is_explained() -> None:
    assert EngineConfig.__doc__ is not None
    for name in EngineConfig.__dataclass_fields__:
        assert re.search(rf"\b{name}\b", EngineConfig.__doc__), f"EngineConfig's docstring does not explain {name}"
