"""The web page with a model that says what a test wrote down, and remembers what it was asked."""

import asyncio
import contextlib
import json
import queue
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from nanovllm.server.web_page import page_router

PATIENCE_S = 30.0


class ScriptedServer:
    """answer: pieces of the next answers; a number is seconds in which the model thinks, None waits until the
    client goes away. failure: an error instead,
    or, as a mid_failure, after the pieces."""

    def __init__(self) -> None:
        self.url = ""
        self.answer: list[str | float | None] = ["Hello."]
        self.reasoning = ""
        self.failure: str | None = None
        self.mid_failure: str | None = None
        self.asked: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.keys: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.gone = threading.Event()

    def app(self) -> FastAPI:
        app = FastAPI()
        app.include_router(page_router())

        @app.get("/v1/models")
        async def models() -> dict[str, Any]:
            return {"object": "list", "data": [{"id": "scripted"}, {"id": "other"}]}

        @app.post("/v1/chat/completions", response_model=None)
        async def chat(request: Request) -> StreamingResponse | JSONResponse:
            self.asked.put(await request.json())
            self.keys.put(request.headers.get("authorization"))
            if self.failure is not None:
                return JSONResponse({"error": {"message": self.failure}}, 503)
            return StreamingResponse(self._events(), media_type="text/event-stream")

        return app

    async def _events(self) -> AsyncIterator[bytes]:
        yield b": keep-alive\n\n"
        if self.reasoning:
            yield _chunk({"reasoning_content": self.reasoning})
        for piece in self.answer:
            if piece is None:
                await self._wait_for_end()
            elif isinstance(piece, float):
                await asyncio.sleep(piece)
            else:
                yield _chunk({"content": piece})
        if self.mid_failure is not None:
            yield b"data: " + json.dumps({"error": {"message": self.mid_failure}}).encode() + b"\n\n"
            return
        usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
        yield b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n"

    async def _wait_for_end(self) -> None:
        """Ends by being cancelled, when the client goes away."""
        try:
            await asyncio.wait_for(asyncio.Event().wait(), PATIENCE_S)
        finally:
            self.gone.set()


def _chunk(delta: dict[str, str]) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}).encode() + b"\n\n"


@contextlib.contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()
    listener = socket.create_server(("127.0.0.1", 0))
    scripted.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(scripted.app(), log_level="error", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="scripted-server")
    thread.start()
    try:
        yield scripted
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        listener.close()
