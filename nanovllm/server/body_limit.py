"""A bound on request bodies: 413 by Content-Length before any of it is read, or while it comes in.

Knows nothing about what a body holds.
"""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanovllm.server.errors import ApiError, error_response

__all__ = ["BodyLimitMiddleware"]


class BodyLimitMiddleware:
    """max_body_bytes: a body of that length is taken."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > self._max_body_bytes:
            await error_response(self._refusal())(scope, receive, send)
            return
        num_bytes = 0
        has_begun = False

        async def receive_bounded() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_body_bytes:
                raise _TooLargeError
            return message

        async def send_unless_refused(message: Message) -> None:
            nonlocal has_begun
            if num_bytes <= self._max_body_bytes or has_begun:  # else the app answers for a body that it has not seen
                has_begun = True
                await send(message)

        try:
            await self._app(scope, receive_bounded, send_unless_refused)
        except _TooLargeError:
            if has_begun:
                raise
        if num_bytes > self._max_body_bytes and not has_begun:
            await error_response(self._refusal())(scope, receive, send)

    def _refusal(self) -> ApiError:
        message = f"the body is too long; this server takes {self._max_body_bytes} bytes. Send a shorter one."
        return ApiError(413, message, code="request_too_large", headers={"Connection": "close"})


class _TooLargeError(Exception):
    """More has come in than is taken."""
