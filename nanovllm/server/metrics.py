"""Metrics: what a Prometheus scrape of the server shows; vLLM's names, labels and buckets, under a prefix of choice.

In: the engine's counters, read at each scrape, and the outputs that handlers show to a `Meter`. Out: text. One registry
for each server. Everything happens in one event loop. As in vLLM, each continuation of a prompt counts as a request of
its own where requests are counted when they end.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from nanovllm.outputs import STEP_TOKEN_BOUNDS, EngineStats, FinishReason
from nanovllm.sampling_params import SamplingParams
from nanovllm.server.histogram import Histogram, bounds_1_2_5, histogram_family
from nanovllm.server.meter import Meter, RequestHistograms

__all__ = ["Meter", "Metrics", "Scrape"]

_TIMES = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
          1920.0, 7680.0)  # fmt: skip
_FIRST_TOKEN_TIMES = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
                      40.0, 80.0, 160.0, 640.0, 2560.0)  # fmt: skip
_TOKEN_TIMES = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
                80.0)  # fmt: skip

_GAUGES: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    ("num_requests_running", "Sequences in the steps of the model.", lambda s: s.num_running),
    ("num_requests_waiting", "Sequences that wait to be computed.", lambda s: s.num_waiting),
    ("kv_cache_usage_perc", "Share of the KV cache in use; 1 is all of it.", lambda s: s.kv_cache_usage),
)
_COUNTERS: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    (
        "prefix_cache_queries",
        "Prompt tokens that were looked up in the prefix cache.",
        lambda s: s.prefix_cache_queries,
    ),
    ("prefix_cache_hits", "Prompt tokens that the prefix cache had.", lambda s: s.prefix_cache_hits),
    ("num_preemptions", "Times that a sequence lost its blocks.", lambda s: s.num_preemptions),
    ("generation_tokens", "Tokens sampled.", lambda s: s.generation_tokens),
    ("spec_decode_num_draft_tokens", "Tokens that speculation proposed.", lambda s: s.num_draft_tokens),
    ("spec_decode_num_accepted_tokens", "Proposed tokens that were confirmed.", lambda s: s.num_accepted_tokens),
    ("engine_steps", "Steps of the engine.", lambda s: s.num_steps),
    ("computed_tokens", "Tokens that went through the model.", lambda s: s.prefill_tokens + s.decode_tokens),
)


@dataclass(frozen=True, slots=True)
class Scrape:
    """A scrape's body, and its Content-Type."""

    body: bytes
    content_type: str


class Metrics(Collector):
    """prefix: before the colon of each name. model_name: a label of all. stats: reads the engine's counters.
    max_model_len: in tokens, bounds the buckets. cache_config: labels of the gauge that describes the KV cache.

    num_rejected: prompts refused because the server was full. num_responses: by method and status.
    """

    def __init__(
        self,
        *,
        prefix: str,
        model_name: str,
        stats: Callable[[], EngineStats],
        max_model_len: int,
        cache_config: Mapping[str, str],
    ) -> None:
        self.num_rejected = 0
        self.num_responses: dict[tuple[str, int], int] = {}
        self._prefix = prefix
        self._labels = {"model_name": model_name, "engine": "0"}
        self._stats = stats
        self._cache_config = {**cache_config, "engine": "0"}
        self._histograms = _histograms(prefix, max_model_len)
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def meter(self, num_prompt_tokens: int, params: SamplingParams) -> Meter:
        """What observes one prompt's request, from now until it ends."""
        return Meter(self._histograms, num_prompt_tokens, params)

    def count_response(self, method: str, status: int) -> None:
        self.num_responses[method, status] = self.num_responses.get((method, status), 0) + 1

    def scrape(self, accept: str = "") -> Scrape:
        """All metrics, in the format that the header `accept` prefers."""
        encode, content_type = choose_encoder(accept)
        return Scrape(encode(self._registry), content_type)

    def collect(self) -> Iterator[Metric]:
        """Every metric as of now."""
        stats = self._stats()
        for name, text, read in _GAUGES:
            yield self._gauge(name, text, self._labels, read(stats))
        yield from self._counters(stats)
        labels = {**self._cache_config, "block_size": str(stats.kv_block_size)}
        yield self._gauge("cache_config_info", "How the KV cache is laid out.", labels, 1)
        yield self._step_sizes(stats)
        for histogram in self._histograms.all():
            yield histogram.family(self._labels)

    def _counters(self, stats: EngineStats) -> Iterator[Metric]:
        seen = self._histograms
        for name, text, read in _COUNTERS:
            yield self._counter(name, text, {(): read(stats)})
        yield self._counter("prompt_tokens", "Prompt tokens of requests that began.", {(): seen.num_prompt_tokens})
        yield self._counter(
            "prompt_tokens_cached", "Prompt tokens that were not computed again.", {(): seen.num_cached_tokens}
        )
        reasons: dict[tuple[str, ...], float] = {(str(reason),): seen.num_finished[reason] for reason in FinishReason}
        yield self._counter("request_success", "Requests that ended, by the reason.", reasons, "finished_reason")
        yield self._counter("requests_rejected", "Prompts refused by a full server.", {(): self.num_rejected})
        responses: dict[tuple[str, ...], float] = {
            (method, str(status)): count for (method, status), count in self.num_responses.items()
        }
        yield self._counter("http_responses", "HTTP answers.", responses, "method", "status")

    def _step_sizes(self, stats: EngineStats) -> Metric:
        name, num_tokens = f"{self._prefix}:iteration_tokens_total", stats.prefill_tokens + stats.decode_tokens
        text = "Tokens of a step."
        return histogram_family(name, text, STEP_TOKEN_BOUNDS, stats.num_steps_by_tokens, num_tokens, self._labels)

    def _gauge(self, name: str, text: str, labels: Mapping[str, str], value: float) -> Metric:
        family = GaugeMetricFamily(f"{self._prefix}:{name}", text, labels=list(labels))
        family.add_metric(list(labels.values()), value)
        return family

    def _counter(self, name: str, text: str, values: Mapping[tuple[str, ...], float], *label_names: str) -> Metric:
        family = CounterMetricFamily(f"{self._prefix}:{name}", text, labels=[*self._labels, *label_names])
        for label_values, value in values.items():
            family.add_metric([*self._labels.values(), *label_values], value)
        return family


def _histograms(prefix: str, max_model_len: int) -> RequestHistograms:
    lengths = bounds_1_2_5(max_model_len)

    def make(name: str, text: str, bounds: tuple[float, ...] | list[float]) -> Histogram:
        return Histogram(f"{prefix}:{name}", text, bounds)

    return RequestHistograms(
        prompt_tokens=make("request_prompt_tokens", "Prompt tokens of a request.", lengths),
        generation_tokens=make("request_generation_tokens", "New tokens of a request.", lengths),
        max_generation_tokens=make("request_max_num_generation_tokens", "New tokens of the longest of n.", lengths),
        params_n=make("request_params_n", "The parameter n.", (1, 2, 5, 10, 20)),
        params_max_tokens=make("request_params_max_tokens", "The parameter max_tokens.", lengths),
        first_token_s=make("time_to_first_token_seconds", "From arrival to the first token.", _FIRST_TOKEN_TIMES),
        inter_token_s=make("inter_token_latency_seconds", "From one token to the next.", _TOKEN_TIMES),
        per_token_s=make("request_time_per_output_token_seconds", "A request's mean time a token.", _TOKEN_TIMES),
        end_to_end_s=make("e2e_request_latency_seconds", "From arrival to the end.", _TIMES),
        queue_s=make("request_queue_time_seconds", "From arrival to the first step.", _TIMES),
        inference_s=make("request_inference_time_seconds", "From the first step to the last token.", _TIMES),
        prefill_s=make("request_prefill_time_seconds", "From the first step to the first token.", _TIMES),
        decode_s=make("request_decode_time_seconds", "From the first token to the last.", _TIMES),
    )
