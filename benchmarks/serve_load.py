"""A server under load: many streaming clients for a while, then connections that are dropped at random points.

    python benchmarks/serve_load.py [--model tiny-chat] [--clients 200] [--seconds 60] [--drops 10000]
    python benchmarks/serve_load.py --seconds 10 --drops 0 --engine num_threads=1 max_num_seqs=256

The server runs in a process of its own, the clients in this one. Each client sends one streaming request after the
other, until the time is over; prompts and lengths are drawn from a seed. Printed: what the clients saw (as `nanovllm
bench serve` does), and of the server the memory (VmRSS of /proc, its slope over the second half), open files, asyncio
tasks and KV blocks, before and after; and how the engine's thread spent the time in which it had requests:

    in the model        inside ModelRunner.submit and its result
    in the engine       the rest of a step: scheduling, sampling, text
    between steps       from the end of a step to the beginning of the next
    of this, waiting    wall time minus the thread's processor time, of everything but the model: for the interpreter
                        lock, which the event loop's thread holds, or for a processor

`Engine idle` is "between steps" and the waiting inside the engine's part of a step. It is found by wrapping
`LLMEngine.step` and the runner in the server's process, which the wrappers slow down by a few microseconds a step.

A dropped connection ends before its request, in its headers, in its body, after it, in the middle of the answer's
events, or near their end. Linux only.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nanovllm.bench.http_events import AnswerError, ServerUrl, post_events
from nanovllm.bench.serving import Load, ask
from nanovllm.bench.serving_report import RequestRecord, ServingReport, serving_report
from nanovllm.bench.workload import Workload
from nanovllm.cli.bench import print_serving

_VOCAB_SIZE = 2000
_MODEL_NAME = "loaded"
_SERVER = "--in-the-server"


def main() -> None:
    if sys.argv[1:2] == [_SERVER]:
        _run_server(**json.loads(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--drops", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--endpoint", choices=("completions", "chat"), default="completions")
    parser.add_argument("--model", default="tiny-chat")
    parser.add_argument("--engine", nargs="+", default=[], metavar="FIELD=VALUE", help="fields of EngineConfig")
    options = parser.parse_args()
    with _server(options.model, dict(map(_key_value, options.engine))) as server:
        asyncio.run(_measure(server, options))


def _key_value(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


# -- the server's process ---------------------------------------------------------------------------------------------


@dataclass
class _Times:
    """Seconds of the engine's thread while it had requests: of the wall clock, and of the processor in what is not the
    model. A gap is the time between two steps."""

    num_steps: int = 0
    step_s: float = 0.0
    model_s: float = 0.0
    gap_s: float = 0.0
    step_cpu_s: float = 0.0
    model_cpu_s: float = 0.0


def _run_server(model: str, engine: dict[str, Any]) -> None:
    """Runs what `nanovllm serve` runs; answers each line of standard input with a line of JSON."""
    from nanovllm import AsyncLLM
    from nanovllm.server.run import open_socket, run_server
    from nanovllm.server.settings import ServerSettings

    times = _Times()
    _time_engine(times)

    def tell() -> None:
        for _ in sys.stdin:
            print(json.dumps({**vars(times), "num_tasks": _num_tasks()}), flush=True)

    threading.Thread(target=tell, daemon=True).start()
    settings = ServerSettings(port=0, log_level="warning", served_model_names=(_MODEL_NAME,))
    with open_socket(settings.host, settings.port) as sock:
        asyncio.run(run_server(AsyncLLM(model, **engine), settings, sock))


def _num_tasks() -> int:
    gc.collect()
    return sum(isinstance(one, asyncio.Task) and not one.done() for one in gc.get_objects())


def _time_engine(times: _Times) -> None:
    from nanovllm.engine.engine import LLMEngine
    from nanovllm.engine.execution import StepExecutor

    step = LLMEngine.step
    end_s: float | None = None

    def timed_step(self: LLMEngine) -> Any:
        nonlocal end_s
        start, cpu = time.perf_counter(), time.thread_time()
        if end_s is not None:
            times.gap_s += start - end_s
        outputs = step(self)
        end = time.perf_counter()
        times.num_steps += 1
        times.step_s += end - start
        times.step_cpu_s += time.thread_time() - cpu
        end_s = end if self.has_unfinished_requests else None
        return outputs

    def timed_model(run: Callable[..., Any]) -> Callable[..., Any]:
        def timed_run(*arguments: Any) -> Any:
            start, cpu = time.perf_counter(), time.thread_time()
            try:
                return run(*arguments)
            finally:
                times.model_s += time.perf_counter() - start
                times.model_cpu_s += time.thread_time() - cpu

        return timed_run

    LLMEngine.step = timed_step  # type: ignore[method-assign]
    StepExecutor._submit = timed_model(StepExecutor._submit)  # type: ignore[method-assign]
    StepExecutor._result = timed_model(StepExecutor._result)  # type: ignore[method-assign]


# -- this process -----------------------------------------------------------------------------------------------------


@dataclass
class _Server:
    """The server's process as it is seen from outside."""

    process: "subprocess.Popen[str]"
    url: ServerUrl

    def ask(self) -> dict[str, Any]:
        """The engine's times and the number of tasks."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def resident_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    def num_files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    async def metric(self, name: str) -> float:
        """The value of a metric without labels of its own."""
        reader, writer = await asyncio.open_connection(self.url.host, self.url.port)
        writer.write(self.url.request("GET", "/metrics"))
        text = (await reader.read()).decode()
        writer.close()
        (line,) = (line for line in text.splitlines() if line.startswith(f"nanovllm:{name}{{"))
        return float(line.rsplit(" ", 1)[1])

    async def until_idle(self) -> float:
        """Seconds until no request is there and every block is free. Raises TimeoutError after a minute."""
        start = time.perf_counter()
        async with asyncio.timeout(60):
            for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
                while await self.metric(name) > 0:
                    await asyncio.sleep(0.01)
        return time.perf_counter() - start


@contextlib.contextmanager
def _server(model: str, engine: dict[str, Any]) -> Iterator[_Server]:
    told = json.dumps({"model": model, "engine": engine})
    command = [sys.executable, str(Path(__file__).resolve()), _SERVER, told]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if "http://" not in line:
                sys.exit("the server did not start")
            yield _Server(process, ServerUrl.parse("http://" + line.split("http://")[1].strip()))
        finally:
            process.terminate()
            assert process.stdin is not None
            process.stdin.close()


async def _measure(server: _Server, options: argparse.Namespace) -> None:
    load = Load(model=_MODEL_NAME, endpoint=options.endpoint)
    await _load(server, load, 3.0, options)  # to warm up
    print(f"process {server.process.pid}, {options.clients} clients")
    await server.until_idle()
    before = server.ask()
    memory, files = server.resident_bytes(), server.num_files()
    report, samples = await _load(server, load, options.seconds, options)
    after = server.ask()
    print_serving(report)
    _print_engine(before, after)
    await _print_rest(server, "after the load", before["num_tasks"], files, memory)
    print(f"  memory over the second half: {_slope(samples) * 60 / 2**20:+.2f} MiB a minute")
    if options.drops:
        start, memory = time.perf_counter(), server.resident_bytes()
        points = await _drop_all(server.url, load, options.drops, options.seed)
        print(f"{options.drops} connections dropped in {time.perf_counter() - start:.0f} s: {points}")
        await _print_rest(server, "after the drops", before["num_tasks"], files, memory)
        record = await ask(server.url, load, load.body([1, 2, 3], 8))
        print(f"  the next request: {record.failure or 'answered'}, {record.num_tokens} tokens")


@dataclass
class _Samples:
    """Of the server's memory, once a second."""

    seconds: list[float] = field(default_factory=list)
    num_bytes: list[int] = field(default_factory=list)


async def _load(
    server: _Server, load: Load, seconds: float, options: argparse.Namespace
) -> tuple[ServingReport, _Samples]:
    records: list[RequestRecord] = []
    output_lens: list[int] = []
    samples = _Samples()
    cpu, start = time.process_time(), time.perf_counter()

    async def client(number: int) -> None:
        draw = random.Random(f"{options.seed}/{number}")
        while time.perf_counter() < start + seconds:
            prompt = [draw.randrange(_VOCAB_SIZE) for _ in range(draw.randint(4, 100))]
            output_lens.append(draw.randint(16, 128))
            records.append(await ask(server.url, load, load.body(prompt, output_lens[-1])))

    async def sample() -> None:
        while True:
            samples.seconds.append(time.perf_counter() - start)
            samples.num_bytes.append(server.resident_bytes())
            await asyncio.sleep(1)

    sampler = asyncio.create_task(sample())
    await asyncio.gather(*map(client, range(options.clients)))
    sampler.cancel()
    took_s = time.perf_counter() - start
    workload = Workload(f"{options.clients} clients for {seconds:.0f} s", [], output_lens)
    share = (time.process_time() - cpu) / took_s
    return serving_report(workload, records, seconds=took_s, client_cpu_share=share), samples


def _slope(samples: _Samples) -> float:
    """Bytes a second over the second half."""
    half = len(samples.seconds) // 2
    if len(samples.seconds) - half < 2:
        return 0.0
    return float(np.polyfit(samples.seconds[half:], samples.num_bytes[half:], 1)[0])


def _print_engine(before: dict[str, Any], after: dict[str, Any]) -> None:
    times = {name: after[name] - before[name] for name in before}
    total = times["step_s"] + times["gap_s"]
    host_s = times["step_s"] - times["model_s"]
    waiting_s = max(0.0, host_s - (times["step_cpu_s"] - times["model_cpu_s"]))
    model_waiting_s = max(0.0, times["model_s"] - times["model_cpu_s"])
    print(f"engine: {times['num_steps']} steps of {total / max(1, times['num_steps']) * 1e3:.2f} ms")
    for name, seconds in (
        ("in the model", times["model_s"]),
        ("  of this, waiting", model_waiting_s),
        ("in the engine", host_s),
        ("  of this, waiting", waiting_s),
        ("between steps", times["gap_s"]),
        ("engine idle", times["gap_s"] + waiting_s),
    ):
        print(f"  {name:<20}{seconds / total:7.1%}")


async def _print_rest(server: _Server, when: str, num_tasks: int, num_files: int, memory: int) -> None:
    idle_s = await server.until_idle()
    await asyncio.sleep(0.5)  # connections that have ended are closed by then
    tasks, files, grown = server.ask()["num_tasks"], server.num_files(), server.resident_bytes() - memory
    print(f"{when}: every block free within {idle_s:.2f} s")
    print(f"  tasks {num_tasks} -> {tasks}, files {num_files} -> {files}, memory {grown / 2**20:+.1f} MiB")


# -- connections that are dropped -------------------------------------------------------------------------------------

POINTS = ("at once", "in the headers", "half a body", "waiting", "in mid-stream", "near the end")


async def _drop_all(url: ServerUrl, load: Load, count: int, seed: int) -> dict[str, int]:
    """Opens and drops connections, 32 at a time; returns how many were dropped where."""
    draw = random.Random(seed)
    points = [draw.choice(POINTS) for _ in range(count)]
    places = asyncio.Semaphore(32)

    async def one(number: int, point: str) -> None:
        async with places:
            await drop(url, load, point, random.Random(f"{seed}/{number}"))

    await asyncio.gather(*(one(number, point) for number, point in enumerate(points)))
    return {point: points.count(point) for point in POINTS}


async def drop(url: ServerUrl, load: Load, point: str, draw: random.Random) -> None:
    """One connection that ends at one of POINTS."""
    num_tokens = draw.randint(4, 48)
    body = load.body([draw.randrange(_VOCAB_SIZE) for _ in range(draw.randint(1, 100))], num_tokens)
    if point in ("in mid-stream", "near the end"):
        num_events = num_tokens if point == "near the end" else draw.randint(1, num_tokens)
        with contextlib.suppress(AnswerError, OSError):
            async with contextlib.aclosing(post_events(url, "/v1/completions", body)) as events:
                async for _ in events:
                    num_events -= 1
                    if not num_events:
                        return
        return
    request = url.request("POST", "/v1/completions", json.dumps(body).encode())
    head = request.index(b"\r\n\r\n") + 4
    num_bytes = {
        "at once": 0,
        "in the headers": draw.randrange(1, head),
        "half a body": draw.randrange(head, len(request)),
        "waiting": len(request),
    }[point]
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(request[:num_bytes])
    with contextlib.suppress(OSError):
        await writer.drain()
        await asyncio.sleep(draw.choice((0, 0, 0.001, 0.01)))
        if draw.random() < 0.5:
            writer.transport.abort()  # a reset, where the other half says good-bye
        writer.close()
        await writer.wait_closed()


if __name__ == "__main__":
    main()
