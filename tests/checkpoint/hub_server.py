"""A server on loopback in the shape of the Hugging Face hub: enough of its HTTP interface for a snapshot download.

Served: GET /api/models/ORG/NAME/revision/REV, GET /api/models/ORG/NAME/tree/COMMIT, HEAD and GET
/ORG/NAME/resolve/COMMIT/FILE, with the headers that huggingface_hub reads (its documentation, "HTTP API").
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """One repository. token: what a client must show, if anything. requests: "METHOD path" of each that came."""

    repository: str
    folder: Path
    token: str | None = None
    url: str = ""
    requests: list[str] = field(default_factory=list)

    @property
    def downloads(self) -> list[str]:
        return [line.rsplit("/", 1)[1] for line in self.requests if line.startswith("GET /") and "/resolve/" in line]


@contextmanager
def hub_server(repository: str, folder: Path, *, token: str | None = None) -> Iterator[Hub]:
    """Serves the files of `folder` as `repository` while the body runs."""
    hub = Hub(repository, folder, token)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _answer(self) -> None:
            path = self.path.split("?")[0]
            hub.requests.append(f"{self.command} {path}")
            if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
                self._send(401, b'{"error": "Access is gated."}', {"X-Error-Code": "GatedRepo"})
            elif path in (f"/api/models/{hub.repository}/revision/{r}" for r in ("main", COMMIT)):
                self._send(200, json.dumps(self._description()).encode(), {})
            elif path.startswith(f"/api/models/{hub.repository}/tree/"):
                self._send(200, json.dumps(self._tree()).encode(), {})
            elif path.startswith(f"/{hub.repository}/resolve/{COMMIT}/"):
                self._send_file(hub.folder / path.removeprefix(f"/{hub.repository}/resolve/{COMMIT}/"))
            else:
                self._send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})

        def _description(self) -> dict[str, object]:
            siblings = [{"rfilename": name} for name in self._names()]
            return {"id": hub.repository, "modelId": hub.repository, "sha": COMMIT, "siblings": siblings}

        def _tree(self) -> list[dict[str, object]]:
            files = {name: (hub.folder / name).read_bytes() for name in self._names()}
            return [
                {"type": "file", "path": name, "size": len(data), "oid": _etag(data)} for name, data in files.items()
            ]

        def _names(self) -> list[str]:
            """Paths in the repository, with slashes."""
            files = sorted(path for path in hub.folder.rglob("*") if path.is_file())
            return [file.relative_to(hub.folder).as_posix() for file in files]

        def _send_file(self, file: Path) -> None:
            if not file.is_file():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            data = file.read_bytes()
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_etag(data)}"', "Accept-Ranges": "bytes"}
            self._send(200, data, headers)

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler


def _etag(data: bytes) -> str:
    """As the hub's for small files: the id of the git blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
