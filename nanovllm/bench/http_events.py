"""Requests over HTTP/1.1 whose answers are streams of server-sent events, at little cost to the processor.

In: a URL and a JSON body. Out: the data of each event, with the time when it was read. One connection for each request,
nothing but asyncio's streams: a client that takes half of a machine measures itself (docs/benchmarks.md has figures).
Knows nothing about what events say.
"""

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from nanovllm.errors import ConfigError

__all__ = ["AnswerError", "ServerUrl", "get_json", "post_events"]

_READ_BYTES = 2**16
_MAX_HEAD_BYTES = 2**16


class AnswerError(Exception):
    """An answer that is not what was asked for. kind: a few words, the same for all failures that are alike."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


@dataclass(frozen=True, slots=True)
class ServerUrl:
    """Where a server is. path: what stands before the paths of its API, without a slash at the end. headers: sent with
    every request."""

    host: str
    port: int
    path: str = ""
    tls: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, *, api_key: str | None = None) -> "ServerUrl":
        """Of "http://host:port/path"; a "/v1" at the end is left out, as clients' base URLs have one. Raises
        `ConfigError`."""
        message = f"the base URL is {text!r}; it must be like http://127.0.0.1:8000."
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise ConfigError(message) from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ConfigError(message)
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ConfigError("the API key has characters that no header can carry; check where it comes from.")
        tls = parts.scheme == "https"
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        path = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, port or (443 if tls else 80), path, tls, headers)

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        """The bytes of a request, after whose answer the connection ends."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        headers = {
            "Host": f"{host}:{self.port}",
            "Connection": "close",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **self.headers,
        }
        lines = [f"{method} {self.path}{path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("ascii") + body


async def post_events(url: ServerUrl, path: str, body: Mapping[str, Any]) -> AsyncGenerator[tuple[float, bytes], None]:
    """The data of each event and the `time.perf_counter` at which it was read, until the answer ends.

    Raises `AnswerError` for a status other than 200 and an answer that breaks off, and `OSError`.
    """
    async with _opened(url) as (reader, writer):
        writer.write(url.request("POST", path, json.dumps(body).encode()))
        await writer.drain()
        answer = await _read_head(reader)
        if answer.status != 200:
            raise AnswerError(f"HTTP {answer.status}", _error_message(await answer.read_all(reader)))
        rest = b""
        async for data in answer.read(reader):
            now = time.perf_counter()
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    yield now, line[5:].strip()


async def get_json(url: ServerUrl, path: str) -> Any:
    """Raises `AnswerError` and `OSError`."""
    async with _opened(url) as (reader, writer):
        writer.write(url.request("GET", path))
        await writer.drain()
        answer = await _read_head(reader)
        body = await answer.read_all(reader)
    if answer.status != 200:
        raise AnswerError(f"HTTP {answer.status}", _error_message(body))
    try:
        return json.loads(body)
    except ValueError as error:
        raise AnswerError("not JSON", f"{path} answered {body[:80]!r}") from error


@contextlib.asynccontextmanager
async def _opened(url: ServerUrl) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter], None]:
    tls = ssl.create_default_context() if url.tls else None
    reader, writer = await asyncio.open_connection(url.host, url.port, ssl=tls, limit=_MAX_HEAD_BYTES)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@dataclass(slots=True)
class _Answer:
    """An answer whose head has been read. length: of its body; None where it is chunked or ends with the connection."""

    status: int
    is_chunked: bool
    length: int | None

    async def read(self, reader: asyncio.StreamReader) -> AsyncGenerator[bytes, None]:
        """The body as it arrives."""
        chunks = _Chunks()
        num_left = self.length
        while num_left != 0 and not chunks.is_complete:
            data = await reader.read(_READ_BYTES)
            if not data:
                if self.is_chunked or num_left is not None:
                    raise AnswerError("cut off", "the connection ended before the answer did")
                return
            if num_left is not None:
                num_left = max(0, num_left - len(data))
            yield chunks.take(data) if self.is_chunked else data

    async def read_all(self, reader: asyncio.StreamReader) -> bytes:
        return b"".join([data async for data in self.read(reader)])


async def _read_head(reader: asyncio.StreamReader) -> _Answer:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        status = int(status_line.split(" ", 2)[1])
    except asyncio.IncompleteReadError as error:
        raise AnswerError("cut off", "the connection ended before an answer") from error
    except (asyncio.LimitOverrunError, ValueError, IndexError) as error:
        raise AnswerError("not HTTP", "what came is not an answer of HTTP/1.1") from error
    fields = (line.partition(":") for line in lines if line)
    headers = {name.strip().lower(): value.strip() for name, _, value in fields}
    is_chunked = "chunked" in headers.get("transfer-encoding", "").lower()
    length = headers.get("content-length", "")
    return _Answer(status, is_chunked, int(length) if length.isdigit() and not is_chunked else None)


class _Chunks:
    """Takes the framing off a chunked body (RFC 9112, 7.1). Trailers are not read."""

    def __init__(self) -> None:
        self.is_complete = False
        self._buffer = bytearray()

    def take(self, data: bytes) -> bytes:
        """What of the body is complete, now that `data` has come."""
        buffer = self._buffer
        buffer += data
        body, begin = bytearray(), 0
        while (end := buffer.find(b"\r\n", begin)) >= 0:
            try:
                size = int(buffer[begin:end].partition(b";")[0], 16)
            except ValueError:
                raise AnswerError("not HTTP", "a chunk of the answer has no size") from None
            if size == 0:
                self.is_complete = True
                break
            if len(buffer) < end + size + 4:
                break
            body += buffer[end + 2 : end + 2 + size]
            begin = end + size + 4
        del buffer[:begin]
        return bytes(body)


def _error_message(body: bytes) -> str:
    """The message of OpenAI's error object, or else the beginning of what came."""
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = None
    return message if isinstance(message, str) else body[:200].decode("utf-8", "replace").strip() or "no message"
