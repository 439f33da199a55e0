"""The access log, one line for each HTTP request; and the exchange that it tells of.

Outermost of the middlewares: whatever happens inside, the exchange is closed, the line is written, and the client gets
an answer with the request's id. The line holds no prompt, no answer, no key and no query string.
"""

import logging
import re
import time
import uuid
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanovllm.server.errors import error_response
from nanovllm.server.exchange import Exchange
from nanovllm.server.metrics import Metrics

__all__ = ["ExchangeMiddleware", "read_request_id"]

logger = logging.getLogger("nanovllm.access")
server_logger = logging.getLogger("nanovllm.server")

_METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE"})
_PROBES = frozenset({"/health", "/ready", "/metrics"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def read_request_id(scope: Scope) -> str:
    """The client's own X-Request-Id where it is fit for a log, else a new one."""
    sent = Headers(scope=scope).get("x-request-id", "")
    return sent if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex


class ExchangeMiddleware:
    """Makes an exchange for each request, and closes it."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.monotonic()
        exchange = Exchange(read_request_id(scope))
        exchange.put(scope)
        answer = _Answer(send, exchange.request_id)
        try:
            await self._app(scope, receive, answer.send)
        except Exception as error:
            server_logger.exception("request %s failed", exchange.request_id)
            if answer.status is not None:
                raise
            await error_response(error)(scope, receive, answer.send)
        finally:
            exchange.close()
            method = scope["method"] if scope["method"] in _METHODS else "other"  # a label must not be the client's
            self._metrics.count_response(method, answer.status or 499)
            _log(scope, exchange, answer, time.monotonic() - started_s)


class _Answer:
    """Sends an answer on, with the request's id, and keeps what the log says of it.

    status: None until it begins. is_complete: whether its end was sent.
    """

    def __init__(self, send: Send, request_id: str) -> None:
        self.status: int | None = None
        self.is_complete = False
        self._send = send
        self._request_id = request_id

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["X-Request-Id"] = self._request_id
            self.status = message["status"]
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.is_complete = True


def _log(scope: Scope, exchange: Exchange, answer: _Answer, duration_s: float) -> None:
    """Probes that find nothing amiss come every few seconds, and are told at the level "debug"."""
    fields = {
        "request_id": exchange.request_id,
        "client": exchange.client,
        "method": scope["method"],
        "path": quote(scope["path"], safe="/-._~"),  # a path may hold line ends
        "status": answer.status or 499,
        "complete": answer.is_complete,
        "duration_ms": round(duration_s * 1000, 3),
        "prompt_tokens": exchange.num_prompt_tokens,
        "generation_tokens": exchange.num_generation_tokens,
    }
    is_probe = scope["path"] in _PROBES and answer.status == 200
    logger.log(
        logging.DEBUG if is_probe else logging.INFO,
        "%(method)s %(path)s %(status)d complete=%(complete)s %(duration_ms).1f ms in=%(prompt_tokens)d "
        "out=%(generation_tokens)d client=%(client)s id=%(request_id)s",
        fields,
        extra={"fields": fields},
    )
