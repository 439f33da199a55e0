"""Traces: a span for each HTTP request, sent to an OpenTelemetry collector. Needs the extra `otel`.

A caller's traceparent is continued. A span names the request's id, its tokens and its status, with OpenTelemetry's
names for HTTP and for generative models; it holds no prompt, no answer and no key.
"""

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanovllm import __version__
from nanovllm.server.exchange import exchange_of

__all__ = ["TracingMiddleware", "make_tracer_provider"]


def make_tracer_provider(endpoint: str) -> TracerProvider:
    """Sends spans in batches, from a thread of its own. endpoint: URL of the collector, such as
    http://localhost:4318/v1/traces. Shutting it down sends what is left."""
    provider = TracerProvider(resource=Resource.create({"service.name": "nanovllm", "service.version": __version__}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return provider


class TracingMiddleware:
    """provider: makes the spans."""

    def __init__(self, app: ASGIApp, *, provider: TracerProvider) -> None:
        self._app = app
        self._tracer = provider.get_tracer("nanovllm.server", __version__)
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        parent = self._propagator.extract(dict(Headers(scope=scope)))
        name = f"{scope['method']} {scope['path']}"
        with self._tracer.start_as_current_span(name, context=parent, kind=SpanKind.SERVER) as span:
            span.set_attribute("http.request.method", scope["method"])
            span.set_attribute("url.path", scope["path"])

            async def send_noting(message: Message) -> None:
                if message["type"] == "http.response.start":
                    _note_status(span, message["status"])
                await send(message)

            try:
                await self._app(scope, receive, send_noting)
            finally:
                exchange = exchange_of(scope)
                exchange.close()  # tokens are summed up when places are given back
                span.set_attribute("gen_ai.usage.input_tokens", exchange.num_prompt_tokens)
                span.set_attribute("gen_ai.usage.output_tokens", exchange.num_generation_tokens)
                span.set_attribute("nanovllm.request_id", exchange.request_id)


def _note_status(span: Span, status: int) -> None:
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_status(Status(StatusCode.ERROR))
