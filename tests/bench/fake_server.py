"""A small server of OpenAI's streaming API that answers as a script tells it, and notes when it did what."""

import asyncio
import contextlib
import itertools
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

USAGE = {"prompt_tokens": 7, "completion_tokens": 5}


@dataclass
class Exchange:
    """One request. sent_s: when each event with text was sent, in seconds of `time.perf_counter`."""

    number: int
    path: str
    headers: str
    body: Any
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    sent_s: list[float] = field(default_factory=list)

    async def begin(self, *, chunked: bool = True, status: str = "200 OK", length: int | None = None) -> None:
        framing = "Transfer-Encoding: chunked\r\n" if chunked else ""
        framing += "" if length is None else f"Content-Length: {length}\r\n"
        await self.write_raw(f"HTTP/1.1 {status}\r\nContent-Type: text/event-stream\r\n{framing}\r\n".encode())

    async def write_raw(self, data: bytes) -> None:
        self.writer.write(data)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def write(self, data: bytes) -> None:
        await self.write_raw(b"%x\r\n%b\r\n" % (len(data), data))

    async def text(self, text: str) -> None:
        key = "text" if self.path == "/v1/completions" else "delta"
        choice = {"index": 0, key: text if key == "text" else {"content": text}}
        self.sent_s.append(time.perf_counter())
        await self.event({"choices": [choice]})

    async def event(self, data: Any) -> None:
        await self.write(b"data: " + json.dumps(data).encode() + b"\n\n")

    async def end(self) -> None:
        await self.write(b"data: [DONE]\n\n")
        await self.write(b"")

    async def fail(self, status: str, message: str) -> None:
        body = json.dumps({"error": {"message": message, "type": "x", "param": None, "code": None}}).encode()
        await self.begin(chunked=False, status=status, length=len(body))
        await self.write_raw(body)


Script = Callable[[Exchange], Awaitable[None]]


@dataclass
class FakeServer:
    url: str
    exchanges: list[Exchange]
    most_at_once: int = 0


@contextlib.asynccontextmanager
async def fake_server(script: Script) -> AsyncIterator[FakeServer]:
    """Answers every POST as `script` does; it has the model "fake"."""
    exchanges: list[Exchange] = []
    numbers = itertools.count()
    handlers: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = asyncio.current_task()
        handlers.add(handler)
        server.most_at_once = max(server.most_at_once, len(handlers))
        try:
            await answer(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            handlers.remove(handler)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path, _ = head.split(" ", 2)
        length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
        body = json.loads(await reader.readexactly(length) or b"null")
        exchange = Exchange(-1 if method == "GET" else next(numbers), path, head, body, reader, writer)
        if method == "GET":
            models = json.dumps({"object": "list", "data": [{"id": "fake"}]}).encode()
            await exchange.begin(chunked=False, length=len(models))
            await exchange.write_raw(models)
        else:
            exchanges.append(exchange)
            await script(exchange)

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    server = FakeServer(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", exchanges)
    async with listener:
        yield server
        while handlers:
            await asyncio.wait({handler for handler in handlers if handler is not None})


@contextlib.contextmanager
def running(script: Script) -> Iterator[FakeServer]:
    """The server in a thread, for a client in another process."""
    ready, leave = threading.Event(), asyncio.Event()
    server: list[FakeServer] = []
    loop = asyncio.new_event_loop()

    async def run() -> None:
        async with fake_server(script) as one:
            server.append(one)
            ready.set()
            await leave.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        assert ready.wait(30)
        yield server[0]
    finally:
        loop.call_soon_threadsafe(leave.set)
        thread.join(30)
        loop.close()


async def five_tokens(exchange: Exchange) -> None:
    """An answer as it should be, in no time."""
    await exchange.begin()
    for _ in range(5):
        await exchange.text("a")
    await exchange.event({"choices": [], "usage": USAGE})
    await exchange.end()
