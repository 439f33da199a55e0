"""EngineThread: the thread that owns an engine: nobody else adds, aborts or steps.

Commands come through a queue, which is emptied before every step; outputs go into streams, whose readers are woken at
most once a step for each event loop. Knows nothing about prompts.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from nanovllm.engine.engine import LLMEngine
from nanovllm.errors import BackendError, RequestError
from nanovllm.output_stream import OutputStream, Waiter
from nanovllm.outputs import FinishReason

__all__ = ["EngineThread"]

logger = logging.getLogger(__name__)


class EngineThread:
    """Runs from the constructor on.

    stats: of the engine, after its latest step or command. cause: the exception that stopped the engine, if one did.
    """

    def __init__(self, engine: LLMEngine) -> None:
        self.stats = engine.stats()
        self.cause: BaseException | None = None
        self._engine = engine
        self._commands: SimpleQueue[tuple[Callable[[Any], None], Any]] = SimpleQueue()  # a method below, its argument
        self._streams: dict[str, OutputStream] = {}  # by id of an unfinished request
        self._waiters: list[Waiter] = []  # of readers that have got something in this step
        self._is_closing = self._has_ended = False
        self._thread = threading.Thread(target=self._run, name="nanovllm-engine", daemon=True)
        self._thread.start()

    # -- for any thread -------------------------------------------------------------------------------------------

    def add(self, stream: OutputStream) -> None:
        """Starts a request. One whose id is in use is told so through its stream."""
        self._commands.put((self._add, stream))
        self.check()  # afterwards: whoever finds that the thread lives knows that it will see the command

    def abort(self, stream: OutputStream) -> None:
        """Ends the request of a stream that nobody reads any more."""
        self._commands.put((self._drop, stream))

    def abort_id(self, request_id: str) -> None:
        """Ends a request and tells its reader."""
        self._commands.put((self._abort, request_id))

    def close(self) -> None:
        """Ends the thread and closes the engine. Returns when that is done."""
        self._commands.put((self._stop, None))
        if threading.current_thread() is not self._thread:  # it may be this one that collects the garbage
            self._thread.join()

    def failure(self) -> BackendError | None:
        """Why no request is served any more; None while they are. A new exception at each call."""
        if not self._has_ended:
            return None
        if self.cause is None:
            return BackendError("the model was closed: no request of it goes on. Make a new AsyncLLM.")
        error = BackendError(f"the engine has stopped: {type(self.cause).__name__}: {self.cause}. Make a new AsyncLLM.")
        error.__cause__ = self.cause
        return error

    def check(self) -> None:
        """Raises `BackendError` where no request is served any more."""
        failure = self.failure()
        if failure is not None:
            raise failure

    # -- the thread itself ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._is_closing:
                if self._commands.empty() and self._engine.has_unfinished_requests:
                    self._step()
                else:
                    self._obey()
                self.stats = self._engine.stats()
                self._wake_readers()
        except BaseException as error:  # whatever it is, nobody may wait for ever
            logger.exception("the engine has stopped")
            self.cause = error
        self._end()

    def _step(self) -> None:
        for output in self._engine.step():
            stream = self._streams[output.request_id]
            if output.finished:
                del self._streams[output.request_id]
            self._notify(stream.put(output))
            if stream.loop.is_closed():
                self._drop(stream)

    def _obey(self) -> None:
        command, argument = self._commands.get()
        command(argument)

    def _add(self, stream: OutputStream) -> None:
        try:
            self._engine.add(stream.request)
        except RequestError as error:
            self._notify(stream.fail(error))
        else:
            self._streams[stream.request.request_id] = stream

    def _drop(self, stream: OutputStream) -> None:
        request_id = stream.request.request_id
        if self._streams.get(request_id) is stream:  # and not one that has taken the id since
            del self._streams[request_id]
            self._engine.abort(request_id)

    def _abort(self, request_id: str) -> None:
        stream = self._streams.get(request_id)
        if stream is None:
            return
        self._drop(stream)
        request = stream.request
        request.changed = [c for c in request.completions if c.seq.finish_reason is FinishReason.ABORT]
        output = request.output()
        assert output is not None, "a request that has ended has something to tell"
        self._notify(stream.put(output))

    def _stop(self, _: None) -> None:
        self._is_closing = True

    def _end(self) -> None:
        self._has_ended = True
        streams = list(self._streams.values())
        while not self._commands.empty():
            _, argument = self._commands.get()
            if isinstance(argument, OutputStream):
                streams.append(argument)
        self._streams.clear()
        for stream in streams:
            error = self.failure()
            assert error is not None
            self._notify(stream.fail(error))
        self._wake_readers()
        try:
            self._engine.close()
            self.stats = self._engine.stats()
        except Exception:
            logger.exception("the engine could not be closed")

    def _notify(self, waiter: Waiter | None) -> None:
        if waiter is not None:
            self._waiters.append(waiter)

    def _wake_readers(self) -> None:
        """Once for each loop, however many of its tasks wait: a loop that sleeps is woken through a socket."""
        waiters, self._waiters = self._waiters, []
        by_loop: dict[asyncio.AbstractEventLoop, list[Waiter]] = {}
        for waiter in waiters:
            by_loop.setdefault(waiter.get_loop(), []).append(waiter)
        for loop, group in by_loop.items():
            with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                loop.call_soon_threadsafe(_set_all, group)


def _set_all(waiters: list[Waiter]) -> None:
    for waiter in waiters:
        if not waiter.done():  # as where its task was cancelled
            waiter.set_result(None)
