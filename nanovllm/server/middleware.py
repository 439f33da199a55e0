"""add_middleware: what every request passes on its way to a route. Wiring only.

    access log > paths > CORS > trace > key > rate limits > body limit > time limit > routes

All of them are plain ASGI, so that streams and disconnects pass through them untouched.
"""

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from nanovllm.server.access_log import ExchangeMiddleware
from nanovllm.server.auth import AuthMiddleware
from nanovllm.server.body_limit import BodyLimitMiddleware
from nanovllm.server.metrics import Metrics
from nanovllm.server.paths import PathMiddleware
from nanovllm.server.rate_limits import RATE_LIMIT_HEADERS, RateLimitMiddleware, RateLimits
from nanovllm.server.request_timeout import RequestTimeoutMiddleware
from nanovllm.server.settings import ServerSettings

__all__ = ["add_middleware"]


def add_middleware(app: FastAPI, settings: ServerSettings, rate_limits: RateLimits, metrics: Metrics) -> None:
    """To be called once, before the app serves. Each call below puts its middleware around those before."""
    if settings.request_timeout_s is not None:
        app.add_middleware(RequestTimeoutMiddleware, timeout_s=settings.request_timeout_s)
    app.add_middleware(BodyLimitMiddleware, max_body_bytes=settings.max_body_bytes)
    app.add_middleware(RateLimitMiddleware, rate_limits=rate_limits)
    app.add_middleware(AuthMiddleware, settings=settings)
    if settings.otlp_endpoint is not None:
        from nanovllm.server.tracing import TracingMiddleware, make_tracer_provider

        app.add_middleware(TracingMiddleware, provider=make_tracer_provider(settings.otlp_endpoint))
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After", *RATE_LIMIT_HEADERS],
        )
    app.add_middleware(PathMiddleware, root_path=settings.root_path)
    app.add_middleware(ExchangeMiddleware, metrics=metrics)
