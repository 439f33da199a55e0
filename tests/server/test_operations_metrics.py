"""Metrics: after known requests the counts are exactly those; names and labels are vLLM's."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_server import LiveServer, live_server
from mock_llms import mock_llm
from operations import make_metrics, names_of, samples, value, values

from nanovllm import EngineStats, FinishReason, SamplingParams
from nanovllm.outputs import CompletionOutput, RequestMetrics, RequestOutput
from nanovllm.sampling_params import RequestOutputKind
from nanovllm.server.histogram import Histogram, bounds_1_2_5

BODY = {"model": "mock", "prompt": [5, 6, 7], "temperature": 0, "ignore_eos": True}
VLLM_NAMES = (
    "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "iteration_tokens_total_bucket",
    "cache_config_info",
    "prefix_cache_queries_total", "prefix_cache_hits_total", "num_preemptions_total", "prompt_tokens_total",
    "generation_tokens_total", "request_success_total", "request_prompt_tokens_bucket",
    "request_generation_tokens_bucket", "request_max_num_generation_tokens_bucket", "request_params_n_bucket",
    "request_params_max_tokens_bucket", "time_to_first_token_seconds_bucket", "inter_token_latency_seconds_bucket",
    "request_time_per_output_token_seconds_bucket", "e2e_request_latency_seconds_bucket",
    "request_queue_time_seconds_bucket", "request_inference_time_seconds_bucket",
    "request_prefill_time_seconds_bucket", "request_decode_time_seconds_bucket",
)  # fmt: skip


@pytest.fixture
def server() -> Iterator[LiveServer]:
    with closing(mock_llm()) as llm, live_server(llm) as server:
        yield server


@pytest.mark.parametrize("prefix", ["nanovllm", "vllm"])
def test_a_scrape_has_the_names_that_dashboards_for_vllm_read(prefix: str) -> None:
    text = make_metrics(prefix=prefix).scrape().body.decode()
    assert {f"{prefix}:{name}" for name in VLLM_NAMES} <= names_of(text)
    labels = {key: value for name, found in samples(text) if name.endswith("_running") for key, value in found}
    assert labels == {"model_name": "a-model", "engine": "0"}


def test_gauges_and_counters_are_the_engines_own() -> None:
    stats = EngineStats(num_running=3, num_waiting=2, num_kv_blocks=8, num_free_kv_blocks=6, generation_tokens=11)
    metrics = make_metrics(stats)
    assert value(metrics, "num_requests_running") == 3
    assert value(metrics, "num_requests_waiting") == 2
    assert value(metrics, "kv_cache_usage_perc") == 0.25
    assert value(metrics, "generation_tokens_total") == 11


@pytest.mark.parametrize("stream", [False, True])
def test_after_known_requests_every_count_is_exact(server: LiveServer, stream: bool) -> None:
    lengths = [1, 2, 5, 9]
    for max_tokens in lengths:
        assert server.post("/v1/completions", **BODY, max_tokens=max_tokens, stream=stream).status_code == 200
    text = server.client.get("/metrics").text
    assert value(text, "prompt_tokens_total") == 3 * len(lengths)
    assert value(text, "generation_tokens_total") == sum(lengths)
    assert values(text, "request_success_total", "finished_reason") == {"stop": 0, "length": 4, "abort": 0, "error": 0}
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds",
                 "request_prefill_time_seconds", "request_decode_time_seconds", "request_params_n",
                 "request_inference_time_seconds", "request_time_per_output_token_seconds"):  # fmt: skip
        assert value(text, f"{name}_count") == len(lengths), name
    assert value(text, "inter_token_latency_seconds_count") == sum(lengths) - len(lengths)
    assert value(text, "iteration_tokens_total_count") == value(text, "engine_steps_total") == sum(lengths)
    assert value(text, "iteration_tokens_total_sum") == value(text, "computed_tokens_total")
    assert values(text, "iteration_tokens_total_bucket", "le")["1.0"] == sum(lengths) - len(lengths)
    assert values(text, "cache_config_info", "block_size") == {"4": 1}
    assert value(text, "request_generation_tokens_sum") == sum(lengths)
    assert value(text, "request_params_max_tokens_sum") == sum(lengths)
    assert values(text, "request_generation_tokens_bucket", "le")["2.0"] == 2
    posts = {labels: count for (name, labels), count in samples(text).items() if name.endswith("http_responses_total")}
    assert [count for labels, count in posts.items() if ("method", "POST") in labels] == [len(lengths)]


def test_the_parts_of_a_requests_time_add_up(server: LiveServer) -> None:
    assert server.post("/v1/completions", **BODY, max_tokens=8).status_code == 200
    text = server.client.get("/metrics").text
    queue, prefill, decode, inference, whole = (
        value(text, f"{name}_seconds_sum")
        for name in ("request_queue_time", "request_prefill_time", "request_decode_time", "request_inference_time",
                     "e2e_request_latency")
    )  # fmt: skip
    assert inference == pytest.approx(prefill + decode)
    assert value(text, "time_to_first_token_seconds_sum") == pytest.approx(queue + prefill)
    assert queue + inference <= whole


def test_openmetrics_is_sent_to_those_who_ask_for_it(server: LiveServer) -> None:
    response = server.client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")
    assert server.client.get("/metrics").headers["content-type"].startswith("text/plain")


deltas = st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=2), min_size=1, max_size=8)


@given(steps=deltas, kind=st.sampled_from([RequestOutputKind.DELTA, RequestOutputKind.CUMULATIVE]), ends=st.booleans())
def test_tokens_and_the_gaps_between_them_are_counted_however_outputs_are_cut(
    steps: list[list[int]], kind: RequestOutputKind, ends: bool
) -> None:
    """steps: new tokens of two continuations in each output."""
    metrics = make_metrics()
    meter = metrics.meter(5, SamplingParams(n=2, output_kind=kind))
    totals = [0, 0]
    for number, counts in enumerate(steps):
        is_last = ends and number == len(steps) - 1
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        shown = counts if kind is RequestOutputKind.DELTA else totals
        reason = FinishReason.STOP if is_last else None
        completions = [CompletionOutput(index, "", [1] * count, reason) for index, count in enumerate(shown)]
        tokens_s = (2.0, 3.0) if any(totals) else (None, None)
        times = RequestMetrics(0.0, 1.0, *tokens_s, sum(totals), 2) if is_last else None
        meter.observe(RequestOutput("id", None, [1] * 5, completions, is_last, metrics=times))
    meter.close(failed=False)
    meter.close(failed=True)
    assert meter.num_generation_tokens == sum(totals)
    text = metrics.scrape().body.decode()
    assert value(text, "time_to_first_token_seconds_count") == (sum(totals) > 0)
    assert value(text, "inter_token_latency_seconds_count") == sum(max(0, total - 1) for total in totals)
    assert value(text, "prompt_tokens_total") == 5
    finished = values(text, "request_success_total", "finished_reason")
    assert finished == {"stop": 2 * ends, "length": 0, "abort": 2 * (not ends), "error": 0}


@given(st.lists(st.floats(-10, 2000, allow_nan=False)), st.integers(1, 1000))
def test_each_bucket_counts_the_values_up_to_its_bound(numbers: list[float], largest: int) -> None:
    histogram = Histogram("sizes", "Sizes.", bounds_1_2_5(largest))
    for number in numbers:
        histogram.observe(number)
    for sample in histogram.family({"model_name": "m"}).samples:
        if sample.name == "sizes_bucket":
            assert sample.value == sum(number <= float(sample.labels["le"]) for number in numbers)
        elif sample.name == "sizes_count":
            assert sample.value == len(numbers)
        else:
            assert sample.value == pytest.approx(sum(numbers))


@given(st.integers(1, 10**7))
def test_bounds_rise_in_steps_of_1_2_5(largest: int) -> None:
    bounds = bounds_1_2_5(largest)
    assert bounds == sorted(set(bounds))
    assert bounds[-1] <= largest < bounds[-1] * 2.5
    assert all(str(int(bound)).rstrip("0") in {"1", "2", "5"} for bound in bounds)


def test_two_servers_of_one_process_count_apart() -> None:
    first, second = make_metrics(), make_metrics()
    first.meter(5, SamplingParams()).close(failed=True)
    assert values(first, "request_success_total", "finished_reason")["error"] == 1
    assert values(second, "request_success_total", "finished_reason")["error"] == 0
