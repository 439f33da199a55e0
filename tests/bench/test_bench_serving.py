"""`bench serve` tells what a server did: its delays, its failures, its counts; here the server is a script."""

import asyncio
import json
import math
import statistics
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fake_server import USAGE, Exchange, FakeServer, Script, fake_server, five_tokens, running
from hypothesis import given
from hypothesis import strategies as st

from nanovllm import NanoVLLMError
from nanovllm.bench import uniform_workload
from nanovllm.bench.http_events import ServerUrl, post_events
from nanovllm.bench.serving import Load, first_model, measure_serving
from nanovllm.bench.serving_report import RequestRecord, ServingReport, serving_report

LOAD = Load(model="fake")
FIRST_S, BETWEEN_S = 0.2, 0.05


def measured(
    script: Script, load: Load = LOAD, num_requests: int = 6, *, num_warmups: int = 0
) -> tuple[ServingReport, FakeServer]:
    async def run() -> tuple[ServingReport, FakeServer]:
        async with fake_server(script) as server:
            workload = uniform_workload(num_requests, 7, 5, 1000)
            report = await measure_serving(ServerUrl.parse(server.url), workload, load, num_warmups=num_warmups)
            return report, server

    return asyncio.run(run())


async def slow_five_tokens(exchange: Exchange) -> None:
    await exchange.begin()
    await asyncio.sleep(FIRST_S)
    for number in range(5):
        if number:
            await asyncio.sleep(BETWEEN_S)
        await exchange.text("a")
    await exchange.event({"choices": [], "usage": USAGE})
    await exchange.end()


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_the_delays_of_a_server_are_found(endpoint: Any) -> None:
    report, server = measured(slow_five_tokens, Load(model="fake", endpoint=endpoint))
    sent = [exchange.sent_s for exchange in server.exchanges]
    gaps = [later - earlier for times in sent for earlier, later in pairwise(times)]
    per_token = [(times[-1] - times[0]) / 4 for times in sent]
    assert report.time_to_first_token is not None
    assert FIRST_S * 0.99 < report.time_to_first_token.p50_s < FIRST_S + 0.05
    for told, true in ((report.inter_token, gaps), (report.time_per_output_token, per_token)):
        assert told is not None
        assert told.mean_s == pytest.approx(statistics.mean(true), abs=0.01)
        assert told.p50_s == pytest.approx(statistics.median(true), abs=0.01)
        assert told.p50_s <= told.p90_s <= told.p99_s
    assert report.end_to_end is not None
    assert report.end_to_end.mean_s >= report.time_to_first_token.mean_s + 4 * report.inter_token.mean_s * 0.999
    assert report.seconds >= report.end_to_end.p50_s


def test_tokens_are_those_that_the_server_counted() -> None:
    report, _ = measured(five_tokens)
    assert (report.num_succeeded, report.num_failed, report.failures) == (6, 0, {})
    assert (report.num_prompt_tokens, report.num_output_tokens, report.num_asked_tokens) == (42, 30, 30)
    assert report.output_tokens_per_s == pytest.approx(30 / report.seconds)
    assert report.total_tokens_per_s == pytest.approx(72 / report.seconds)
    assert report.requests_per_s == pytest.approx(6 / report.seconds)
    assert report.num_uncounted == 0
    assert report.client_cpu_share > 0


def test_events_stand_for_tokens_where_the_server_does_not_count() -> None:
    async def uncounted(exchange: Exchange) -> None:
        await exchange.begin()
        for _ in range(3):
            await exchange.text("a")
        await exchange.end()

    report, _ = measured(uncounted)
    assert (report.num_uncounted, report.num_output_tokens, report.num_prompt_tokens) == (6, 18, 0)


async def fails(exchange: Exchange) -> None:
    await exchange.fail("500 Internal Server Error", "the device fell off the bus")


async def fails_midway(exchange: Exchange) -> None:
    await exchange.begin()
    await exchange.text("a")
    await exchange.event({"error": {"message": "the device fell off the bus"}})
    await exchange.write(b"")


async def cuts_the_connection(exchange: Exchange) -> None:
    await exchange.begin()
    await exchange.text("a")


async def ends_without_done(exchange: Exchange) -> None:
    await exchange.begin()
    await exchange.text("a")
    await exchange.write(b"")


async def says_nothing(exchange: Exchange) -> None:
    pass


async def hangs(exchange: Exchange) -> None:
    await exchange.begin()
    await exchange.reader.read()  # until the client goes away


async def speaks_nonsense(exchange: Exchange) -> None:
    await exchange.write_raw(b"how do you do\r\n\r\n")


async def sends_nonsense(exchange: Exchange) -> None:
    await exchange.begin()
    await exchange.write(b"data: [1]\n\n")


@pytest.mark.parametrize(
    ("bad", "name", "detail"),
    [
        (fails, "HTTP 500", "fell off the bus"),
        (fails_midway, "error event", "fell off the bus"),
        (cuts_the_connection, "cut off", "before the answer did"),
        (ends_without_done, "cut off", "without [DONE]"),
        (says_nothing, "cut off", "before an answer"),
        (hangs, "timed out", "in 1 s"),
        (speaks_nonsense, "not HTTP", "HTTP/1.1"),
        (sends_nonsense, "not an answer", "[1]"),
    ],
)
def test_a_failure_is_counted_and_named_and_the_rest_is_measured(bad: Script, name: str, detail: str) -> None:
    async def every_other(exchange: Exchange) -> None:
        await (bad if exchange.number % 2 else five_tokens)(exchange)

    report, _ = measured(every_other, Load(model="fake", timeout_s=1))
    assert report.failures == {name: 3}
    assert detail in report.failure_details[name]
    assert (report.num_requests, report.num_succeeded, report.num_failed) == (6, 3, 3)
    assert (report.num_output_tokens, report.num_asked_tokens) == (15, 30)


def test_a_server_that_is_not_there_fails_every_request() -> None:
    async def run() -> ServingReport:
        async with fake_server(five_tokens) as server:
            url = ServerUrl.parse(server.url)
        return await measure_serving(url, uniform_workload(2, 7, 5, 1000), LOAD, num_warmups=0)

    report = asyncio.run(run())
    assert report.failures == {"ConnectionRefusedError": 2}
    assert report.time_to_first_token is report.end_to_end is report.inter_token is None


def test_a_first_request_that_fails_says_so_before_anything_is_measured() -> None:
    with pytest.raises(NanoVLLMError, match="HTTP 500: the device"):
        measured(fails, num_warmups=1)


def test_no_more_requests_are_under_way_than_allowed() -> None:
    report, server = measured(five_tokens, Load(model="fake", max_concurrency=2), 12)
    assert server.most_at_once <= 2
    assert report.num_succeeded == 12
    _, server = measured(slow_five_tokens, LOAD, 12)
    assert server.most_at_once == 12


def test_requests_arrive_at_the_rate_and_at_random() -> None:
    arrivals: list[float] = []

    async def noted(exchange: Exchange) -> None:
        arrivals.append(asyncio.get_running_loop().time())
        await five_tokens(exchange)

    measured(noted, Load(model="fake", request_rate=100.0), 60)
    gaps = [later - earlier for earlier, later in pairwise(arrivals)]
    assert 0.3 < arrivals[-1] - arrivals[0] < 1.5  # 0.6 s on average
    assert statistics.stdev(gaps) > 0.003  # of an exponential distribution: as large as the mean


def test_a_request_says_what_is_wanted() -> None:
    _, server = measured(five_tokens, Load(model="m", endpoint="chat", ignore_eos=False), 1)
    (exchange,) = server.exchanges
    (message,) = exchange.body["messages"]
    assert exchange.path == "/v1/chat/completions"
    assert len(message["content"].split()) == 7
    assert (exchange.body["model"], exchange.body["max_tokens"], exchange.body["stream"]) == ("m", 5, True)
    assert "ignore_eos" not in exchange.body
    _, server = measured(five_tokens, LOAD, 1)
    assert server.exchanges[0].body["prompt"] == uniform_workload(1, 7, 5, 1000).prompts[0]
    assert server.exchanges[0].body["ignore_eos"] is True


@given(st.lists(st.integers(1, 90), min_size=1, max_size=30), st.sampled_from([b"\n\n", b"\r\n\r\n"]), st.booleans())
def test_events_are_the_same_however_the_network_cuts_them(cuts: list[int], newline: bytes, chunked: bool) -> None:
    data = [f'{{"number": {number}, "text": "é"}}'.encode() for number in range(4)]
    stream = b": comment" + newline + b"".join(b"data: " + each + newline for each in data)
    framed = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (stream[:50], stream[50:], b""))

    async def cut_up(exchange: Exchange) -> None:
        await exchange.begin(chunked=chunked)
        rest = framed if chunked else stream
        for size in cuts:
            await exchange.write_raw(rest[:size])
            rest = rest[size:]
            await asyncio.sleep(0)
        await exchange.write_raw(rest)

    async def run() -> list[bytes]:
        async with fake_server(cut_up) as server:
            return [event async for _, event in post_events(ServerUrl.parse(server.url), "/", {})]

    assert asyncio.run(run()) == data


def test_a_url_may_have_a_path_a_v1_and_a_key() -> None:
    url = ServerUrl.parse("https://models.example/llm/v1/", api_key="secret")
    request = url.request("POST", "/v1/completions", b"{}").decode()
    assert (url.host, url.port, url.tls) == ("models.example", 443, True)
    assert request.startswith("POST /llm/v1/completions HTTP/1.1\r\n")
    assert "\r\nAuthorization: Bearer secret\r\n" in request


@pytest.mark.parametrize("text", ["localhost:8000", "ftp://a", "http://", "http://a:b", "http://a/?x=1"])
def test_what_is_no_url_is_refused(text: str) -> None:
    with pytest.raises(NanoVLLMError, match="must be like"):
        ServerUrl.parse(text)


@pytest.mark.parametrize(
    "options", [{"endpoint": "embeddings"}, {"request_rate": 0.0}, {"request_rate": math.nan}, {"max_concurrency": 0}]
)
def test_a_load_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(NanoVLLMError, match=next(iter(options))):
        Load(model="fake", **options)


def test_a_request_with_one_token_has_no_time_per_token() -> None:
    record = RequestRecord(10.0, num_output_tokens=1, end_s=12.0)
    record.see_text(11.0)
    report = serving_report(uniform_workload(1, 1, 1, 9), [record], seconds=2.0, client_cpu_share=0.1)
    assert report.time_per_output_token is report.inter_token is None
    assert report.time_to_first_token is not None
    assert (report.time_to_first_token.mean_s, report.output_tokens_per_s) == (1.0, 0.5)


def test_tokens_without_text_still_have_an_end() -> None:
    async def silent(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.event({"choices": [{"index": 0, "text": "", "finish_reason": "length"}], "usage": USAGE})
        await exchange.end()

    report, _ = measured(silent, num_requests=2)
    assert report.num_succeeded == 2
    assert report.time_to_first_token == report.end_to_end


# -- the command ------------------------------------------------------------------------------------------------------


def bench_serve(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "nanovllm", "bench", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


SIZES = ("--num-prompts", "8", "--input-len", "7", "--output-len", "5")


def test_the_command_prints_and_writes_the_report(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    with running(five_tokens) as server:
        run = bench_serve("--base-url", server.url, *SIZES, "--request-rate", "200", "--json", str(file))
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("8 x 7 in, 5 out: 8 requests, 0 failed")
    for words in ("40 new of 40 asked for", "time to first token", "p99", "of a core"):
        assert words in run.stdout
    report = json.loads(file.read_text())
    assert (report["num_succeeded"], report["num_output_tokens"]) == (8, 40)
    assert report["output_tokens_per_s"] == pytest.approx(40 / report["seconds"])
    assert all(exchange.body["model"] == "fake" for exchange in server.exchanges)
    assert len(server.exchanges) == 9  # the first is not measured


def test_the_command_names_failures_and_fails() -> None:
    async def every_other(exchange: Exchange) -> None:
        await (fails if exchange.number % 2 else five_tokens)(exchange)

    with running(every_other) as server:
        run = bench_serve("--base-url", server.url, *SIZES)
    assert run.returncode == 1
    assert "4 x HTTP 500: the device fell off the bus" in run.stdout
    assert "4 of 8 requests failed" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--base-url", "nosuch"), 2, "must be like"),
        (("--base-url", "http://127.0.0.1:9"), 1, "which model"),
        (("--base-url", "http://127.0.0.1:9", "--model", "m"), 1, "first request"),
        (("--num-prompts", "3"), 2, "--output-len"),
        (("--vocab-size", "0"), 2, "vocab-size is 0"),
        (("--request-rate", "-1"), 2, "request_rate is -1"),
    ],
)
def test_a_mistake_is_one_message(arguments: tuple[str, ...], code: int, message: str) -> None:
    run = bench_serve(*arguments)
    assert run.returncode == code
    assert message in run.stderr
    assert "Traceback" not in run.stderr


def test_the_first_model_is_the_one_that_the_server_names() -> None:
    async def run() -> str:
        async with fake_server(five_tokens) as server:
            return await first_model(ServerUrl.parse(server.url))

    assert asyncio.run(run()) == "fake"
