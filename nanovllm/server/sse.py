"""Server-sent events: an answer that is sent while it is made.

In: a stream of events, each already framed. Out: an ASGI response. It begins with the first event, or, so that nobody
takes a long wait for a dead connection, with a comment; what fails before is an ordinary error response, what fails
later an error event, after which there is no [DONE]. Knows nothing about what the events say.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator

from pydantic import BaseModel
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from nanovllm.server.disconnect import ClientGoneError, unless_gone
from nanovllm.server.errors import api_error

__all__ = ["DONE", "EventStream", "event"]

logger = logging.getLogger("nanovllm.server")

DONE = b"data: [DONE]\n\n"
_COMMENT = b": keep-alive\n\n"
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the latter keeps nginx from holding events back


def event(data: BaseModel) -> bytes:
    """An event whose data is `data` as JSON."""
    return b"data: " + data.model_dump_json().encode() + b"\n\n"


class EventStream(StreamingResponse):
    """events: framed events, one or more at a time. keep_alive_s: silence after which a comment is sent. The stream is
    closed as soon as the client goes away, also while it waits for the first event."""

    def __init__(self, events: AsyncGenerator[bytes, None], keep_alive_s: float) -> None:
        super().__init__(events, media_type="text/event-stream", headers=_HEADERS)
        self._events = events
        self._keep_alive_s = keep_alive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        channel = _Channel(self, send)
        try:
            await unless_gone(receive, self._send_all(channel))
        except ClientGoneError:
            if not channel.has_begun:
                raise

    async def _send_all(self, channel: "_Channel") -> None:
        try:
            await self._send_events(channel)
        except Exception as error:
            if not channel.has_begun:
                raise
            told = api_error(error)
            if told.status_code >= 500:
                logger.error("an answer broke off: %s", error, exc_info=None if told.message == str(error) else error)
            await channel.send(b"data: " + json.dumps(told.body()).encode() + b"\n\n")
        await channel.end()

    async def _send_events(self, channel: "_Channel") -> None:
        keeper = asyncio.create_task(channel.keep_alive(self._keep_alive_s))
        try:
            async with contextlib.aclosing(self._events):
                async for events in self._events:
                    await channel.send(events)
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)


class _Channel:
    """The sending side of one response, which two tasks use: one has the events, one fills long silences."""

    def __init__(self, response: StreamingResponse, send: Send) -> None:
        self._response = response
        self._send = send
        self._lock = asyncio.Lock()
        self._last_sent_s = asyncio.get_running_loop().time()
        self.has_begun = False

    async def send(self, body: bytes, *, more_body: bool = True) -> None:
        async with self._lock:
            if not self.has_begun:
                start = {"type": "http.response.start", "status": self._response.status_code}
                await self._send({**start, "headers": self._response.raw_headers})
                self.has_begun = True
            await self._send({"type": "http.response.body", "body": body, "more_body": more_body})
            self._last_sent_s = asyncio.get_running_loop().time()

    async def end(self) -> None:
        await self.send(b"", more_body=False)

    async def keep_alive(self, interval_s: float) -> None:
        """Sends a comment after each silence of `interval_s`; has no end."""
        clock = asyncio.get_running_loop().time
        while True:
            remaining_s = self._last_sent_s + interval_s - clock()
            if remaining_s > 0:
                await asyncio.sleep(remaining_s)
            else:
                await self.send(_COMMENT)
