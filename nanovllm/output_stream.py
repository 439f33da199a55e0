"""OutputStream: one request's outputs on their way from the thread that makes them to the task that reads them.

Holds one output at most: what its reader is late for is merged. Knows nothing about the engine's thread.
"""

import asyncio
import threading
from dataclasses import replace

from nanovllm.engine.request import Request
from nanovllm.errors import NanoVLLMError
from nanovllm.outputs import CompletionOutput, RequestOutput
from nanovllm.sampling_params import RequestOutputKind

__all__ = ["OutputStream", "Waiter"]

Waiter = asyncio.Future[None]
"""What a reader waits for; only its own loop may set it."""


class OutputStream:
    """A request and its unread output. loop: of the task that reads."""

    __slots__ = ("_error", "_lock", "_unread", "_waiter", "loop", "request")

    def __init__(self, request: Request, loop: asyncio.AbstractEventLoop) -> None:
        self.request = request
        self.loop = loop
        self._lock = threading.Lock()
        self._unread: RequestOutput | None = None
        self._error: NanoVLLMError | None = None
        self._waiter: Waiter | None = None

    def put(self, output: RequestOutput) -> Waiter | None:
        """Any thread may. Returns what the reader waits for, if it does; its loop has to set it."""
        if output.error is not None:
            return self.fail(output.error)
        with self._lock:
            if self._unread is None:
                self._unread = output
            else:
                is_delta = self.request.output_kind is RequestOutputKind.DELTA
                self._unread = _merged(self._unread, output, is_delta=is_delta)
            return self._take_waiter()

    def fail(self, error: NanoVLLMError) -> Waiter | None:
        """As `put`: the reader gets what it has not read, then the error."""
        with self._lock:
            self._error = error
            return self._take_waiter()

    async def take(self) -> RequestOutput:
        """What has not been read, as one output; waits for it. Only the request's own loop may."""
        while True:
            with self._lock:
                output, self._unread = self._unread, None
                if output is not None:
                    return output
                if self._error is not None:
                    raise self._error
                self._waiter = waiter = self.loop.create_future()
            await waiter

    def _take_waiter(self) -> Waiter | None:
        waiter, self._waiter = self._waiter, None
        return waiter


def _merged(first: RequestOutput, second: RequestOutput, *, is_delta: bool) -> RequestOutput:
    """One output that tells what two tell, one after the other. The first, which nobody has seen, is used up."""
    completions = {completion.index: completion for completion in first.outputs}
    for completion in second.outputs:
        before = completions.get(completion.index)
        completions[completion.index] = _joined(before, completion) if before and is_delta else completion
    return replace(second, outputs=[completions[index] for index in sorted(completions)])


def _joined(first: CompletionOutput, second: CompletionOutput) -> CompletionOutput:
    """Two deltas as one. Extends the first one's lists, so that a long absence costs no more than its tokens."""
    first.token_ids.extend(second.token_ids)
    if first.logprobs is not None:
        first.logprobs.extend(second.logprobs or ())
    return replace(second, text=first.text + second.text, token_ids=first.token_ids, logprobs=first.logprobs)
