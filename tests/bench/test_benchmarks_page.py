"""docs/benchmarks.md: its commands run and its tables say what the code does."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from fake_server import five_tokens, running

from benchmarks.compare import ADAPTERS, parse
from nanovllm.bench import WORKLOAD_NAMES, named_workload

PAGE = Path(__file__).parents[2].joinpath("docs", "benchmarks.md").read_text(encoding="utf-8")


COMMANDS = re.findall(r"^nanovllm (bench .+)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("command", [command for command in COMMANDS if not command.startswith("bench serve")])
def test_a_command_of_the_page_runs(command: str) -> None:
    assert "--model FOLDER" in command
    arguments = shlex.split(command.replace("--model FOLDER", "--backend mock --model none"))
    run = subprocess.run([sys.executable, "-m", "nanovllm", *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("bench serve")])
def test_a_command_of_the_page_measures_a_server(command: str, tmp_path: Path) -> None:
    with running(five_tokens) as server:
        arguments = [
            *shlex.split(re.sub(r" --base-url \S+| --request-rate \S+", "", command)),
            "--base-url",
            server.url,
        ]
        program = [sys.executable, "-m", "nanovllm", *arguments]
        run = subprocess.run(program, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert " 0 failed" in run.stdout
    assert (tmp_path / "report.json").exists() == ("--json report.json" in command)


def test_the_comparison_names_adapters_that_exist_and_every_workload() -> None:
    (command,) = re.findall(r"^python -m benchmarks\.compare (.+?)^```", PAGE, re.MULTILINE | re.DOTALL)
    options = parse(shlex.split(command.replace("\\\n", " ")))
    adapters = {engine.partition("=")[0].partition(":")[0] for engine in options.engine}
    assert adapters == {path.stem.removeprefix("run_") for path in ADAPTERS.glob("run_*.py")}
    assert tuple(options.workload) == WORKLOAD_NAMES


@pytest.mark.parametrize("name", WORKLOAD_NAMES)
def test_the_table_of_workloads_counts_the_requests(name: str) -> None:
    (row,) = re.findall(rf"^\| `{name}` \| (\d+) \|", PAGE, re.MULTILINE)
    assert int(row) == len(named_workload(name, 1000).prompts)
