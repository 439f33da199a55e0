"""A bound on the time of a request: what runs longer is cancelled, and its client is told.

Before the answer begins that is 408, where the body has not come in, or 504; an event stream ends with an error event.
Any other answer that has begun is cut off, which a client can tell from its end. Knows nothing about what is asked.
"""

import asyncio
import contextlib
import json

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanovllm.server.errors import ApiError, error_response

__all__ = ["RequestTimeoutMiddleware"]

_LAST_WORD_TIMEOUT_S = 5.0
"""Time for the client to take the last event; a client that does not read is cut off."""


class RequestTimeoutMiddleware:
    """timeout_s: from the end of the headers to the end of the answer."""

    def __init__(self, app: ASGIApp, *, timeout_s: float) -> None:
        self._app = app
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_body = False
        started: Message | None = None

        async def receive_noting() -> Message:
            nonlocal has_body
            message = await receive()
            has_body |= not message.get("more_body", False)
            return message

        async def send_noting(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = message
            await send(message)

        limit = asyncio.timeout(self._timeout_s)
        try:
            async with limit:
                await self._app(scope, receive_noting, send_noting)
        except TimeoutError:
            if not limit.expired():
                raise
            error = self._refusal(has_body=has_body)
            if started is None:
                await error_response(error)(scope, receive, send)
            elif Headers(raw=started["headers"]).get("content-type", "").startswith("text/event-stream"):
                await _end_stream(error, send)

    def _refusal(self, *, has_body: bool) -> ApiError:
        if not has_body:
            return ApiError(408, f"the body has not come in {self._timeout_s:g} s.", headers={"Connection": "close"})
        message = f"the request took longer than {self._timeout_s:g} s and was ended. Ask for fewer tokens."
        return ApiError(504, message, code="request_timeout", headers={"x-should-retry": "false"})


async def _end_stream(error: ApiError, send: Send) -> None:
    body = b"data: " + json.dumps(error.body()).encode() + b"\n\n"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LAST_WORD_TIMEOUT_S):
            await send({"type": "http.response.body", "body": body, "more_body": False})
