"""The web page at `/`: a chat with the model, as files of this package.

In: GET requests. Out: the files in `page/`, with headers that let the page run its own scripts, speak to its own server
and do nothing else. Knows nothing about the model: the page asks /v1/models and /v1/chat/completions itself.
"""

from importlib.resources import files
from types import MappingProxyType

from fastapi import APIRouter, Response

from nanovllm.server.errors import ApiError

__all__ = ["page_router"]

_TYPES = MappingProxyType({"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"})
_POLICY = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_HEADERS = MappingProxyType(
    {
        "Content-Security-Policy": _POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
)


def page_router() -> APIRouter:
    """GET / and /page/NAME. The files are read once, here."""
    router = APIRouter(include_in_schema=False)
    folder = files("nanovllm.server").joinpath("page")
    contents = {entry.name: entry.read_bytes() for entry in folder.iterdir() if _type(entry.name)}

    def answer(name: str) -> Response:
        return Response(contents[name], media_type=_type(name), headers=dict(_HEADERS))

    @router.get("/")
    async def show_page() -> Response:
        return answer("index.html")

    @router.get("/page/{name}")
    async def show_file(name: str) -> Response:
        if name not in contents:
            raise ApiError(404, f"the page has no file {name!r}; it has {', '.join(sorted(contents))}.")
        return answer(name)

    return router


def _type(name: str) -> str | None:
    return _TYPES.get(name.rpartition(".")[2])
