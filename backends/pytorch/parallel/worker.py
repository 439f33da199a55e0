"""The program of a rank beside the engine's: loads its part of the model, then runs the steps that it is told of.

Called as `python -m backends.pytorch.parallel.worker DESCRIPTOR PARENT`: the file descriptor of its end of a socket
pair, over which `messages` go, and the id of the process that started it, without which it ends. When to end is the
engine's business, so signals to a whole group of processes, such as Ctrl-C, are left to that one.
"""

import os
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection

from backends.pytorch.parallel.meeting import make_collective
from backends.pytorch.parallel.messages import (
    Allocate,
    Answer,
    Command,
    Join,
    Load,
    MeasureMemory,
    Step,
    WarmUp,
    read_command,
    write,
)
from nanovllm.errors import BackendError, NanoVLLMError

__all__ = ["Worker", "main"]

_PARENT_CHECK_S = 5.0  # how often an idle worker looks whether its parent lives


class Worker:
    """One rank. `obey` carries out a command and returns the answer, None where there is none."""

    def __init__(self, load: Load) -> None:
        self._collective = make_collective(load.collective, load.rank, load.rendezvous)
        self._runner = load.load(collective=self._collective)

    def obey(self, command: Command) -> Answer | None:
        is_joint = isinstance(command, Step | WarmUp | MeasureMemory)
        try:
            return self._carry_out(command)
        except NanoVLLMError as error:
            return Answer(error, is_joint)
        except Exception as error:
            return Answer(BackendError(f"{type(error).__name__}: {error}"), is_joint)

    def _carry_out(self, command: Command) -> Answer | None:
        match command:
            case Step(batch):
                self._runner.follow(batch)
                return None
            case MeasureMemory():
                return Answer(memory_bytes=self._runner.kv_memory_bytes())
            case Join():
                self._collective.join()
            case Allocate(num_blocks, block_size):
                self._runner.allocate_pools(num_blocks, block_size)
            case WarmUp():
                self._runner.warm_up()
        return Answer()


def main() -> None:
    """Runs until the other end of the socket pair is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    connection, parent = Connection(int(sys.argv[1])), int(sys.argv[2])
    with suppress(EOFError, OSError):  # nobody is there any more who could be told anything
        _serve(connection, parent)
    sys.stderr.flush()
    os._exit(0)  # what torch would tidy up may wait for ranks that have gone


def _serve(connection: Connection, parent: int) -> None:
    command = read_command(connection.recv_bytes())
    assert isinstance(command, Load)
    try:
        worker = Worker(command)
    except NanoVLLMError as error:
        connection.send_bytes(write(Answer(error)))
        connection.recv_bytes()  # not gone before the answer has been read
        return
    connection.send_bytes(write(Answer()))
    while os.getppid() == parent:
        if connection.poll(_PARENT_CHECK_S):
            answer = worker.obey(read_command(connection.recv_bytes()))
            if answer is not None:
                connection.send_bytes(write(answer))


if __name__ == "__main__":
    main()
