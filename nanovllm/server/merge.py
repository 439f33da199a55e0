"""Several streams as one.

In: asynchronous generators. Out: their items as they come, each with the number of its stream. No stream is asked for
an item before its last one has been taken, so a slow reader holds all of them back. Knows nothing about the items.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

__all__ = ["merge"]

T = TypeVar("T")


async def merge(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """Ends when all have ended; where one fails, or nobody reads on, all are closed."""
    if len(streams) == 1:
        async with contextlib.aclosing(streams[0]) as stream:
            async for item in stream:
                yield 0, item
        return
    done: asyncio.Queue[int] = asyncio.Queue()
    tasks: dict[int, asyncio.Task[T | _End]] = {}

    def ask(number: int) -> None:
        task = tasks[number] = asyncio.create_task(_next(streams[number]))
        task.add_done_callback(lambda _: done.put_nowait(number))

    try:
        for number in range(len(streams)):
            ask(number)
        while tasks:
            number = await done.get()
            result = tasks.pop(number).result()
            if not isinstance(result, _End):
                yield number, result
                ask(number)
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        for stream in streams:
            await stream.aclose()


class _End:
    """In place of an item: the stream has ended."""


async def _next(stream: AsyncGenerator[T, None]) -> "T | _End":
    return await anext(stream, _End())
