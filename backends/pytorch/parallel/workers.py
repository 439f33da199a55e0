"""The processes of ranks 1, 2, ...: started, told what to do, ended.

Each is a fresh interpreter (`worker`): no fork, and not multiprocessing's spawn, which would run the user's own script
again. Knows nothing about what is computed.
"""

import os
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

from backends.pytorch.parallel.messages import Answer, Command, Load, write
from backends.pytorch.parallel.watch import Process, Watch
from nanovllm.errors import NanoVLLMError

__all__ = ["Workers"]

_PATIENCE_S = 5.0  # for the news of a process that does not listen any more


class Workers:
    """loads: one for each rank beside the engine's. on_loss: see `Watch`. The processes start at once, and end with
    this one, with this object, or by `close`, whichever comes first."""

    def __init__(self, loads: Sequence[Load], on_loss: Callable[[], None] = lambda: None) -> None:
        processes: list[Process] = []
        try:
            processes.extend(_start(load.rank.number) for load in loads)
        except BaseException:
            for process in processes:
                process.handle.kill()
                process.handle.wait()
            raise
        self._connections = [process.connection for process in processes]
        self._watch = Watch(processes, on_loss)
        self.close = weakref.finalize(self, self._watch.end)
        """Ends the processes. May be called more than once."""
        for connection, load in zip(self._connections, loads, strict=True):
            self._send(connection, write(load))

    def check(self) -> None:
        """Raises `BackendLostError` where a rank is lost."""
        self._watch.check()

    def send(self, command: Command) -> None:
        """The same command to all. Raises `BackendLostError`."""
        self._watch.check()
        message = write(command)
        for connection in self._connections:
            self._send(connection, message)

    def wait_for_answers(self) -> list[Answer]:
        """See `Watch`."""
        return self._watch.wait_for_answers()

    def settle_failure(self, error: NanoVLLMError) -> NanoVLLMError:
        """See `Watch`."""
        return self._watch.settle_failure(error)

    def lose(self, reason: str) -> None:
        """See `Watch`."""
        self._watch.lose(reason)

    def _send(self, connection: Connection, message: bytes) -> None:
        try:
            connection.send_bytes(message)
        except OSError as error:
            self._watch.check(_PATIENCE_S)
            self._watch.lose(f"a rank does not listen: {error}")
            self._watch.check()


def _start(number: int) -> Process:
    """The process of a rank, which finds what this one finds when it imports."""
    ours, theirs = socket.socketpair()
    output = tempfile.TemporaryFile()  # noqa: SIM115  (closed by the watch)
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    with theirs:
        handle = subprocess.Popen(
            [sys.executable, "-P", "-m", "backends.pytorch.parallel.worker", str(theirs.fileno()), str(os.getpid())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "PYTHONPATH": path},
        )
    return Process(number, Connection(ours.detach()), handle, output)
