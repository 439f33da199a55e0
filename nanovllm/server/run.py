"""Runs the server: from a loaded model to the end of the process's work.

    SIGTERM, SIGINT -> /ready and new requests: 503 -> running requests finish, or end with an error when
    shutdown_timeout_s is over -> the model is closed -> the server returns. A second signal ends it at once.

Knows nothing about routes.
"""

import asyncio
import logging
import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from nanovllm.async_llm import AsyncLLM
from nanovllm.errors import ConfigError
from nanovllm.server.admission import Admission
from nanovllm.server.app import create_app
from nanovllm.server.http_protocol import make_protocol
from nanovllm.server.log_format import configure_logging
from nanovllm.server.settings import ServerSettings

__all__ = ["open_socket", "run_server"]

logger = logging.getLogger("nanovllm.server")

_LAST_ANSWERS_TIMEOUT_S = 5
"""Seconds that answers get to leave once nothing is computed any more; then their connections are cut."""


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that is bound but does not listen yet, so that a taken port is told before a model is loaded.
    Raises `ConfigError`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"host is {host!r}, which is no address of this machine: {error.strerror}.") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror}. Stop what uses the port, or choose another with "
            "--port; 0 takes a free one."
        ) from error
    return sock


async def run_server(llm: AsyncLLM, settings: ServerSettings, sock: socket.socket) -> None:
    """Serves until a signal ends it; then the model is closed. sock: as `open_socket` makes it."""
    configure_logging(settings)
    app = create_app(llm, settings)
    async with llm:
        await _Server(app, llm, settings).serve([sock])


class _Server(uvicorn.Server):
    """uvicorn's server, with an end of its own making."""

    def __init__(self, app: FastAPI, llm: AsyncLLM, settings: ServerSettings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                http=make_protocol(),
                ws="none",
                server_header=False,
                timeout_graceful_shutdown=_LAST_ANSWERS_TIMEOUT_S,
            )
        )
        self._admission: Admission = app.state.admission
        self._llm = llm
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._drain_task: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for sock in sockets or ():
            host, port = sock.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            print(f"listening on http://{shown}:{port}{self._settings.root_path}", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Takes the place of uvicorn's, which would end new connections at once and the process by the signal."""
        self._loop.call_soon_threadsafe(self._end, sig)

    def _end(self, sig: int) -> None:
        name = signal.Signals(sig).name
        if self._drain_task is not None:
            logger.warning("%s once more: ending at once", name)
            self.force_exit = self.should_exit = True
            return
        timeout_s = self._settings.shutdown_timeout_s
        logger.info("%s: %d requests may end within %g s", name, self._admission.num_requests, timeout_s)
        self._drain_task = self._loop.create_task(self._drain(timeout_s))

    async def _drain(self, timeout_s: float) -> None:
        self._admission.drain()
        try:
            async with asyncio.timeout(timeout_s):
                await self._admission.wait_idle()
        except TimeoutError:
            logger.warning("%d requests have not ended in time; aborting them", self._admission.num_requests)
            await self._llm.aclose()  # their clients get an error, as from any engine that has stopped
        self.should_exit = True
