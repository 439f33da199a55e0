"""A thread that listens to the processes of a model: what they answer, and whether they still live.

The engine's thread cannot: while it computes a step, it may wait within a sum for a process that does not come. Where
one is lost, all are ended, which closes their ends of what sums go through and so ends that wait; on a device, where it
does not, `on_loss` has to.
"""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import IO

from backends.pytorch.parallel.messages import Answer, read_answer
from nanovllm.errors import BackendLostError, NanoVLLMError

__all__ = ["Process", "Watch"]

_FAILURE_GRACE_S = 5.0
_EXIT_S = 5.0  # for a process that has closed its socket, or whose socket was closed
_LAST_WORDS = 600  # characters of what a process wrote at last


@dataclass(frozen=True, slots=True)
class Process:
    """A rank beside the engine's. output: what it has written to stdout and stderr, a file without a name."""

    number: int
    connection: Connection
    handle: "subprocess.Popen[bytes]"
    output: IO[bytes]


class Watch:
    """Listens from the constructor on, until `end`. Any thread may call.

    on_loss: called once where a rank is lost, from any thread; it must not wait. failure_grace_s: from a rank's failure
    where ranks wait for each other until the others should have failed as well.
    """

    def __init__(
        self,
        processes: Sequence[Process],
        on_loss: Callable[[], None] = lambda: None,
        *,
        failure_grace_s: float = _FAILURE_GRACE_S,
    ) -> None:
        self._on_loss = on_loss
        self._failure_grace_s = failure_grace_s
        self._processes = {process.connection: process for process in processes}
        self._changed = threading.Condition()  # reentrant: what is collected while it is held may call `end`
        self._answers: dict[int, Answer] = {}
        self._deadline: float | None = None  # of a step, or the like, that has failed on a rank
        self._lost: str | None = None  # why no step can be run any more
        self._is_ending = False
        self._thread = threading.Thread(target=self._run, name="nanovllm-ranks", daemon=True)
        self._thread.start()

    def check(self, patience_s: float = 0.0) -> None:
        """Raises `BackendLostError` where a rank is lost, or turns out to be within `patience_s`."""
        with self._changed:
            if self._changed.wait_for(lambda: self._lost, patience_s):
                raise BackendLostError(self._lost)

    def wait_for_answers(self) -> list[Answer]:
        """The answers of all ranks to the last command, by rank. Raises the first error among them, or
        `BackendLostError`."""
        with self._changed:
            self._changed.wait_for(lambda: self._lost or len(self._answers) == len(self._processes))
            answers, self._answers, self._deadline = self._answers, {}, None
        self.check()
        in_order = [answers[number] for number in sorted(answers)]
        for answer in in_order:
            if answer.error is not None:
                raise answer.error
        return in_order

    def settle_failure(self, error: NanoVLLMError) -> NanoVLLMError:
        """Rank 0 has failed in a step. Returns its error where all ranks have failed at the same place, so that they
        may go on together; else all are ended, and what is returned says why."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._lost or len(self._answers) == len(self._processes), self._failure_grace_s
            )
            is_joint = len(self._answers) == len(self._processes)
            self._answers, self._deadline = {}, None
        if not is_joint:
            self.lose(f"rank 0 failed in a step in which others did not: {error}")
        with self._changed:
            return error if self._lost is None else BackendLostError(self._lost)

    def lose(self, reason: str) -> None:
        """Ends all processes, after which nothing can be computed. Later reasons than the first are dropped."""
        with self._changed:
            is_first = self._lost is None and not self._is_ending
            if is_first:
                self._lost = f"the model's processes have ended: {reason}. Load the model again."
            self._changed.notify_all()
        for process in self._processes.values():
            process.handle.kill()
        if is_first:
            self._on_loss()

    def end(self) -> None:
        """Ends the processes and the thread. May be called more than once."""
        with self._changed:
            if self._is_ending:
                return
            self._is_ending = True
            self._lost = self._lost or "the model was closed"
            for connection in self._processes:
                if not connection.closed:
                    _hang_up(connection)
        deadline = time.monotonic() + _EXIT_S
        for process in self._processes.values():
            try:
                process.handle.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                process.handle.kill()
                process.handle.wait()
        if threading.current_thread() is not self._thread:  # it may be this one that collects the garbage
            self._thread.join()

    def _run(self) -> None:
        self._listen_to_all()
        with self._changed:
            for process in self._processes.values():
                process.connection.close()
                process.output.close()

    def _listen_to_all(self) -> None:
        live = list(self._processes)
        while live:
            with self._changed:
                deadline = self._deadline
            timeout_s = None if deadline is None else max(deadline - time.monotonic(), 0)
            ready = wait(live, timeout_s)
            if not ready and deadline is not None:
                self._lose_failed_step(deadline)
            for connection in ready:
                assert isinstance(connection, Connection)
                if not self._listen(connection):
                    live.remove(connection)

    def _listen(self, connection: Connection) -> bool:
        """Takes a message; whether there will be another one."""
        process = self._processes[connection]
        try:
            answer = read_answer(connection.recv_bytes())
        except (EOFError, OSError):
            self._note_end(process)
            return False
        with self._changed:
            self._answers[process.number] = answer
            if answer.is_joint and self._deadline is None:
                self._deadline = time.monotonic() + self._failure_grace_s
            self._changed.notify_all()
        return True

    def _note_end(self, process: Process) -> None:
        how = _how_it_ended(process)
        with self._changed:
            is_expected = self._lost is not None or self._is_ending
        if not is_expected:
            self.lose(f"rank {process.number} {how}")

    def _lose_failed_step(self, deadline: float) -> None:
        with self._changed:
            if self._deadline != deadline:
                return  # settled in the meantime
            self._deadline = None
            number, answer = next(iter(self._answers.items()))
        self.lose(f"rank {number} failed in a step in which others did not: {answer.error}")


def _hang_up(connection: Connection) -> None:
    """Both ends read an end of file from now on; closing would take the descriptor from under the thread."""
    with socket.socket(fileno=os.dup(connection.fileno())) as end, suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


def _how_it_ended(process: Process) -> str:
    """In words, with what the process wrote at last."""
    try:
        code = process.handle.wait(_EXIT_S)
    except subprocess.TimeoutExpired:
        return "does not answer"
    size = process.output.seek(0, os.SEEK_END)
    process.output.seek(max(0, size - _LAST_WORDS))
    last_words = process.output.read().decode(errors="replace").strip()
    how = f"exited with code {code}"
    if code < 0:
        how = f"was killed by signal {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            how += " (as the system does where memory runs out)"
    return f"{how}; its last words: {last_words}" if last_words else how
