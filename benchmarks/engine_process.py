"""EngineProcess: an engine in a process and an environment of its own, which runs rounds on command.

In: the command of an adapter (see `benchmarks/peers/round_server.py` for what passes through its pipes) and workloads.
Out: rounds whose number of tokens was checked. Knows nothing about what the engines are. POSIX only: an engine that
waits is stopped by SIGSTOP, with all processes that it started, so that none can spin while another is measured.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nanovllm.bench import Workload

__all__ = ["EngineFailure", "EngineProcess", "Round"]


class EngineFailure(Exception):
    """An engine could not be loaded, ended, took too long, or did not return what was asked for."""


@dataclass(frozen=True, slots=True)
class Round:
    """seconds: from submitting all requests to the last token. peak_memory_bytes: of the engine since it began."""

    seconds: float
    peak_memory_bytes: int


class EngineProcess:
    """A loaded engine, stopped unless a round runs. log: a file that takes what the engine prints.

    Raises `EngineFailure` where it cannot be loaded in timeout_s; `run` where a round takes longer than that.
    """

    def __init__(self, command: Sequence[str], log: Path, *, timeout_s: float) -> None:
        self._log = log
        self._timeout_s = timeout_s
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True
            )
        try:
            hello = self._receive()
        except EngineFailure:
            self.close()
            raise
        self.version = f"{hello['engine']} {hello['version']}"
        self.load_s = float(hello["load_s"])
        self._signal(signal.SIGSTOP)

    def run(self, workload: Workload) -> Round:
        """Raises `EngineFailure` also where a request was not continued by exactly the tokens that it asked for."""
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(workload.to_dict()).encode() + b"\n")
            self._process.stdin.flush()
            reply = self._receive()
        except BrokenPipeError:
            raise EngineFailure(self._why("ended")) from None
        finally:
            self._signal(signal.SIGSTOP)
        counts = [len(token_ids) for token_ids in reply["token_ids"]]
        if counts != workload.output_lens:
            raise EngineFailure(f"returned {counts} tokens for the requests; asked for were {workload.output_lens}")
        return Round(reply["seconds"], reply["peak_memory_bytes"])

    def close(self) -> None:
        """Ends the engine and all that it started."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _signal(self, number: int) -> None:
        """To every process of the engine's session; its leader may be gone before the others."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _receive(self) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], self._timeout_s)
        if not ready:
            raise EngineFailure(self._why(f"did not answer in {self._timeout_s:g} s"))
        line = stdout.readline()
        if not line:
            raise EngineFailure(self._why("ended"))
        message: dict[str, Any] = json.loads(line)
        return message

    def _why(self, what: str) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"{what}; the last line that it printed: {lines[-1] if lines else '(none)'}"
