"""A route that raises: its client is told so with the request's id, and nobody else notices."""

import logging
from collections.abc import AsyncIterator

import httpx2
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from operations import make_admission, make_metrics, value

from nanovllm import SamplingParams
from nanovllm.server.admission import Admission
from nanovllm.server.exchange import exchange_of
from nanovllm.server.metrics import Metrics
from nanovllm.server.middleware import add_middleware
from nanovllm.server.rate_limits import RateLimits
from nanovllm.server.settings import ServerSettings

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def failing_app(metrics: Metrics, admission: Admission) -> FastAPI:
    app = FastAPI()
    settings = ServerSettings()

    @app.get("/broken")
    async def broken(request: Request) -> None:
        admission.admit(exchange_of(request.scope), 3, SamplingParams())
        raise RuntimeError("a detail that is nobody's business")

    @app.get("/breaks")
    async def breaks(request: Request) -> StreamingResponse:
        admission.admit(exchange_of(request.scope), 3, SamplingParams())

        async def body() -> AsyncIterator[bytes]:
            yield b"half"
            raise RuntimeError("a detail that is nobody's business")

        return StreamingResponse(body())

    add_middleware(app, settings, RateLimits(settings), metrics)
    return app


async def test_it_is_an_error_object_with_the_id_and_without_the_details(caplog: pytest.LogCaptureFixture) -> None:
    metrics = make_metrics()
    admission = make_admission(metrics)
    transport = httpx2.ASGITransport(failing_app(metrics, admission))
    async with httpx2.AsyncClient(transport=transport, base_url="http://server") as client:
        with caplog.at_level(logging.ERROR):
            response = await client.get("/broken", headers={"X-Request-Id": "the-id"})
    assert response.status_code == 500
    assert response.headers["X-Request-Id"] == "the-id"
    assert response.json()["error"]["type"] == "server_error"
    assert "detail" not in response.text
    assert "the-id" in caplog.text
    assert (admission.num_requests, admission.num_tokens) == (0, 0)
    assert value(metrics, "http_responses_total") == 1


async def test_an_answer_that_breaks_off_is_cut_and_its_place_is_free() -> None:
    metrics = make_metrics()
    admission = make_admission(metrics)
    transport = httpx2.ASGITransport(failing_app(metrics, admission))
    async with httpx2.AsyncClient(transport=transport, base_url="http://server") as client:
        with pytest.raises(RuntimeError):
            await client.get("/breaks")
    assert (admission.num_requests, admission.num_tokens) == (0, 0)
