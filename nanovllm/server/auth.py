"""Who is it? Bearer keys, of which the server knows only digests.

In: an HTTP request. Out: the exchange knows its client, or the answer is 401. The paths that tell whether the server
lives, and the web page's own files, need no key; everything else does, /metrics and /tokenize included.
"""

import hmac

from fastapi import Security
from fastapi.params import Depends
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from nanovllm.server.errors import ApiError, error_response
from nanovllm.server.exchange import exchange_of
from nanovllm.server.settings import ServerSettings, key_digest

__all__ = ["AuthMiddleware", "key_docs"]

_OPEN_PATHS = frozenset({"/", "/health", "/ready"})
_OPEN_FOLDER = "/page/"
_NUM_CLIENT_DIGITS = 12


class AuthMiddleware:
    """Without keys in the settings, everybody passes and is known by the address."""

    def __init__(self, app: ASGIApp, *, settings: ServerSettings) -> None:
        self._app = app
        self._digests = settings.api_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                exchange_of(scope).client = self._client(scope)
            except ApiError as error:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _client(self, scope: Scope) -> str:
        """Raises `ApiError` (401)."""
        address = scope["client"][0] if scope.get("client") else "unknown"
        if not self._digests or _is_open(scope):
            return address
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _refusal("this server needs a key; send the header Authorization: Bearer KEY.")
        digest = key_digest(key.strip())
        is_known = False
        for known in self._digests:  # all of them, so that the time tells nothing
            is_known |= hmac.compare_digest(known, digest)
        if not is_known:
            raise _refusal("the key is none that this server knows. Check the header Authorization.")
        return f"key-{digest.removeprefix('sha256:')[:_NUM_CLIENT_DIGITS]}"


def key_docs(settings: ServerSettings) -> list[Depends]:
    """For OpenAPI: that a route needs a key, where there are keys. It refuses nobody; the middleware does."""
    return [Security(HTTPBearer(auto_error=False))] if settings.api_keys else []


def _is_open(scope: Scope) -> bool:
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    return scope["method"] == "GET" and (path in _OPEN_PATHS or path.startswith(_OPEN_FOLDER))


def _refusal(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
