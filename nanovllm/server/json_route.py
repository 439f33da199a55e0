"""JsonRoute: bodies are read as strict JSON, so that whatever a client sends is answered with a clear 400.

No NaN, no broken UTF-8, no lone surrogates, no nesting that a later step cannot take.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.requests import ClientDisconnect

from nanovllm.server.disconnect import ClientGoneError
from nanovllm.server.errors import ApiError

__all__ = ["JsonRoute"]


class _JsonRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        try:
            return from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise ApiError(400, f"the body is not valid JSON: {error}.") from error

    async def body(self) -> bytes:
        try:
            return await super().body()
        except ClientDisconnect as error:
            raise ClientGoneError from error


class JsonRoute(APIRoute):
    """A FastAPI route whose body is read as above."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def read_strictly(request: Request) -> Response:
            return await handle(_JsonRequest(request.scope, request.receive))

        return read_strictly
