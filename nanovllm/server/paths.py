"""Paths as clients write them: with a slash at the end or without, and HEAD where there is GET.

In: any HTTP request. Out: the one that the routes know, and for HEAD an answer without its body. A proxy may pass on
the path under which it publishes the server, or leave it out.
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["PathMiddleware"]


class PathMiddleware:
    """Rewrites requests; refuses none. root_path: where a proxy publishes the server; empty or as "/llm"."""

    def __init__(self, app: ASGIApp, *, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_head = scope["method"] == "HEAD"
        path = scope["path"]
        if self._root_path and (path == self._root_path or path.startswith(self._root_path + "/")):
            path = path.removeprefix(self._root_path)
        path = self._root_path + (path.rstrip("/") or "/")  # ASGI's paths begin with the root path

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        method = "GET" if is_head else scope["method"]
        rewritten = {**scope, "path": path, "root_path": self._root_path, "method": method}
        await self._app(rewritten, receive, send_head if is_head else send)
