"""Clients that live in environments of their own: make_environments.sh makes them, a variable names each one's Python.

In: the name of a program in programs/, and what it is to be told. Out: what it printed. Knows no client.
"""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent
PATIENCE_S = 120.0

_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "DO_NOT_TRACK": "1",
    "LANGSMITH_TRACING": "false",
}
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT")


@dataclass(frozen=True)
class ClientProcess:
    """python: the environment's interpreter. home: an empty folder, so that no setting of the user's is read."""

    python: str
    home: Path

    def run(self, *args: str, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        """python with `args`, and what came of it."""
        kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        return subprocess.run(
            [self.python, *args],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            cwd=self.home,
            env={**kept, **_OFFLINE, "HOME": str(self.home), **variables},
        )

    def output(self, *args: str, **variables: str) -> str:
        """What it printed; it must have ended well."""
        done = self.run(*args, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def told(self, program: str, **settings: Any) -> Any:
        """What a program of programs/ found out: it reads JSON from its argument and ends with a line of JSON."""
        printed = self.output(str(FOLDER / "programs" / program), json.dumps(settings))
        return json.loads(printed.splitlines()[-1])


def client_process(variable: str, home: Path) -> ClientProcess:
    """The environment that `variable` names; skips where there is none."""
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"{variable} names no Python; tests/server/clients/make_environments.sh makes the environments")
    return ClientProcess(python, home)
