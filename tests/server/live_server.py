"""A real server on loopback, in a thread of its own, that tests ask over sockets."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import uvicorn

from nanovllm import AsyncLLM
from nanovllm.server.admission import Admission
from nanovllm.server.app import create_app
from nanovllm.server.http_protocol import HEAD_TIMEOUT_S, make_protocol
from nanovllm.server.settings import ServerSettings

PATIENCE_S = 60.0


@dataclass(frozen=True)
class LiveServer:
    """url: without a slash at the end. client: a plain HTTP client of it."""

    url: str
    port: int
    llm: AsyncLLM
    admission: Admission
    client: httpx2.Client

    def post(self, path: str, **body: Any) -> httpx2.Response:
        return self.client.post(path, json=body)

    def answer(self, path: str, **body: Any) -> Any:
        """The body of an answer that must be a 200."""
        response = self.post(path, **body)
        assert response.status_code == 200, response.text
        return response.json()

    def connect(self) -> socket.socket:
        """A bare connection, for what no HTTP client would send."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)


@contextlib.contextmanager
def live_server(llm: AsyncLLM, *, head_timeout_s: float = HEAD_TIMEOUT_S, **settings: Any) -> Iterator[LiveServer]:
    """Serves `llm`, and stops when left; the model stays the caller's."""
    app = create_app(llm, ServerSettings(port=0, **settings))
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio: no TCP_NODELAY without
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    port = listener.getsockname()[1]
    http = make_protocol(head_timeout_s)
    config = uvicorn.Config(app, log_level="error", lifespan="on", http=http, timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="live-server")
    thread.start()
    url = f"http://127.0.0.1:{port}"
    try:
        with httpx2.Client(base_url=url, timeout=PATIENCE_S) as client:  # the listener queues what comes too early
            yield LiveServer(url, port, llm, app.state.admission, client)
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        listener.close()
    assert not thread.is_alive(), "the server did not stop"
