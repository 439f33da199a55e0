"""A client that goes away ends the work that was for it.

In: a request's ASGI `receive`, after its body has been read, and the work. Knows nothing about what the work is.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from nanovllm.server.errors import ApiError

__all__ = ["ClientGoneError", "unless_gone"]

T = TypeVar("T")


class ClientGoneError(ApiError):
    """The client closed the connection. Nobody reads it; the log shows nginx's status for it."""

    def __init__(self) -> None:
        super().__init__(499, "the client closed the connection before its answer was complete.")


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The work's result. Where the client goes away first, or this task is cancelled, the work is cancelled and has
    ended when this returns; raises `ClientGoneError` for the former."""
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
