"""/health, /ready, /version and /metrics: what operators and their tools ask."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.params import Depends
from fastapi.responses import JSONResponse, Response

from nanovllm import __version__
from nanovllm.async_llm import AsyncLLM
from nanovllm.server.admission import Admission
from nanovllm.server.answers import error_docs
from nanovllm.server.errors import ApiError
from nanovllm.server.metrics import Metrics

__all__ = ["operations_router"]

_SCRAPE: dict[str, Any] = {
    "content": {kind: {"schema": {"type": "string"}} for kind in ("text/plain", "application/openmetrics-text")}
}
"""For OpenAPI: a scrape, in the form that its reader asks for."""


def operations_router(
    llm: AsyncLLM, admission: Admission, metrics: Metrics, keyed: Sequence[Depends] = ()
) -> APIRouter:
    """keyed: what routes that need a key depend on."""
    router = APIRouter(tags=["operations"], responses=error_docs())

    @router.get("/health")
    async def health() -> JSONResponse:
        """Whether the server is alive: 503 once its engine has stopped over an error, and only a restart helps."""
        if llm.errored:
            raise ApiError(503, "the engine has stopped over an error; the server's log says which. Restart it.")
        return JSONResponse({"status": "alive"})

    @router.get("/ready")
    async def ready() -> JSONResponse:
        """Whether requests should be sent here: the model is loaded, and the server is not shutting down."""
        if admission.is_draining:
            raise ApiError(503, "the server is shutting down.")
        if not llm.is_running:
            raise ApiError(503, "the engine has stopped.")
        return JSONResponse({"status": "ready"})

    @router.get("/version", dependencies=keyed)
    async def version() -> JSONResponse:
        """The server's version."""
        return JSONResponse({"version": __version__})

    @router.get("/metrics", response_class=Response, responses={200: _SCRAPE}, dependencies=keyed)
    async def show_metrics(request: Request) -> Response:
        """Counters, gauges and histograms for Prometheus."""
        scrape = metrics.scrape(request.headers.get("accept", ""))
        return Response(scrape.body, headers={"Content-Type": scrape.content_type})

    return router
