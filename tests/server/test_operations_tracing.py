"""Traces: spans as a collector gets them, over HTTP."""

import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from queue import SimpleQueue

import pytest
from live_server import live_server
from mock_llms import mock_llm

pytest.importorskip("opentelemetry.sdk", reason="traces need the extra otel")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

Spans = SimpleQueue[Span]


@pytest.fixture
def collector() -> Iterator[tuple[str, Spans]]:
    """The URL of a collector, and what it gets."""
    spans: Spans = SimpleQueue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        spans.put(span)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", spans
        server.shutdown()
        thread.join()


def test_a_request_is_a_span_that_continues_the_callers_trace(collector: tuple[str, Spans]) -> None:
    url, spans = collector
    trace_id, parent_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with closing(mock_llm()) as llm, live_server(llm, otlp_endpoint=url) as server:
        body = {"model": "mock", "prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": True}
        headers = {"traceparent": f"00-{trace_id}-{parent_id}-01", "X-Request-Id": "the-id"}
        assert server.client.post("/v1/completions", json=body, headers=headers).status_code == 200
        span = spans.get(timeout=60)
    assert span.name == "POST /v1/completions"
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (trace_id, parent_id)
    facts = {entry.key: entry.value.int_value or entry.value.string_value for entry in span.attributes}
    assert facts["http.response.status_code"] == 200
    assert (facts["gen_ai.usage.input_tokens"], facts["gen_ai.usage.output_tokens"]) == (3, 4)
    assert facts["nanovllm.request_id"] == "the-id"
