"""Two hundred clients at once, and hundreds that drop their connections: no error, and nothing is left behind.

The same for a minute, and with ten thousand drops: `benchmarks/serve_load.py`.
"""

import asyncio
import gc
import os
import random
import sys
from pathlib import Path

import pytest
from live_server import LiveServer
from mock_llms import is_idle, until

from benchmarks.serve_load import POINTS, drop
from nanovllm.bench import uniform_workload
from nanovllm.bench.http_events import ServerUrl
from nanovllm.bench.serving import Endpoint, Load, ask, measure_serving
from nanovllm.bench.serving_report import RequestRecord

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="open files and memory are read from /proc")

NUM_CLIENTS = 200
LOAD = Load(model="tiny-chat")


def test_two_hundred_streaming_clients_get_their_answers_and_leave_nothing(tiny_chat: LiveServer) -> None:
    url = ServerUrl.parse(tiny_chat.url)
    wave(url, seed=0)  # whatever grows once has grown
    before, memory = left_behind(tiny_chat), resident_bytes()
    records = wave(url, seed=1)
    assert [record.detail for record in records if record.failure] == []
    assert [record.num_output_tokens for record in records] == [num_tokens(1, i) for i in range(NUM_CLIENTS)]
    assert all(record.first_s is not None for record in records)
    until(lambda: no_more(left_behind(tiny_chat), before))
    assert resident_bytes() - memory < 32 * 2**20


def test_connections_dropped_anywhere_leave_every_block_free(tiny_chat: LiveServer) -> None:
    """At the points that `drop` knows, from before the request to the last events."""
    url, draw = ServerUrl.parse(tiny_chat.url), random.Random(3)
    before = left_behind(tiny_chat)

    async def drop_all() -> None:
        places = asyncio.Semaphore(32)

        async def one(number: int) -> None:
            async with places:
                await drop(url, LOAD, POINTS[number % len(POINTS)], random.Random(draw.random()))

        await asyncio.gather(*map(one, range(600)))

    asyncio.run(drop_all())
    until(lambda: no_more(left_behind(tiny_chat), before))
    answer = tiny_chat.answer("/v1/completions", prompt="The capital of France is", temperature=0)
    assert answer["choices"][0]["text"].startswith(" Paris.")


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_bench_serve_measures_this_server(tiny_chat: LiveServer, endpoint: Endpoint) -> None:
    load = Load(model="tiny-chat", endpoint=endpoint, request_rate=200.0, max_concurrency=16)
    workload = uniform_workload(40, 20, 6, 2000)
    report = asyncio.run(measure_serving(ServerUrl.parse(tiny_chat.url), workload, load))
    assert report.failures == {}
    assert (report.num_succeeded, report.num_output_tokens, report.num_uncounted) == (40, 240, 0)
    assert report.num_prompt_tokens == 800 if endpoint == "completions" else report.num_prompt_tokens >= 800


def wave(url: ServerUrl, seed: int) -> list[RequestRecord]:
    async def all_at_once() -> list[RequestRecord]:
        bodies = (LOAD.body(prompt(seed, number), num_tokens(seed, number)) for number in range(NUM_CLIENTS))
        return await asyncio.gather(*(ask(url, LOAD, body) for body in bodies))

    return asyncio.run(all_at_once())


def prompt(seed: int, number: int) -> list[int]:
    draw = random.Random(f"{seed}/{number}")
    return [draw.randrange(2000) for _ in range(draw.randint(4, 60))]


def num_tokens(seed: int, number: int) -> int:
    return 8 + (seed + number) % 17


def left_behind(server: LiveServer) -> tuple[bool, int, int, int]:
    """Whether the engine is idle; requests that hold a place, unfinished tasks, and open files of this process."""
    gc.collect()
    # type(): isinstance asks for __class__, which some objects of other libraries answer with a warning
    num_tasks = sum(not one.done() for one in gc.get_objects() if issubclass(type(one), asyncio.Task))
    return is_idle(server.llm), server.admission.num_requests, num_tasks, len(os.listdir("/proc/self/fd"))


def no_more(now: tuple[bool, int, int, int], before: tuple[bool, int, int, int]) -> bool:
    """Whether the engine is idle and nothing is more than before, when earlier connections may not have ended yet."""
    return now[0] and all(a <= b for a, b in zip(now[1:], before[1:], strict=True))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
