"""Serving: what users of a server see, when requests of a workload reach it at a given rate.

In: the URL of any OpenAI-compatible server and a workload. Out: a report; every request is in it, also those that
failed. Prints nothing. Knows nothing about the server but its API.
"""

import asyncio
import contextlib
import json
import math
import random
import time
from collections.abc import AsyncGenerator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, Literal, get_args

from nanovllm.bench.http_events import AnswerError, ServerUrl, get_json, post_events
from nanovllm.bench.serving_report import RequestRecord, ServingReport, serving_report
from nanovllm.bench.workload import Workload
from nanovllm.errors import BackendError, ConfigError

__all__ = ["Endpoint", "Load", "ask", "first_model", "measure_serving"]

Endpoint = Literal["completions", "chat"]

_PATHS: dict[str, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
_TEXT = (
    "the of and to in is you that it he was for on are as with his they at be this have from or one had by word but "
    "not what all were we when your can said there use an each which she do how their if will up other about out many "
    "then them these so some her would make like him into time has look two more go see no way could people my than "
    "first been call who its now find long down day did get come made may part"
)
_WORDS = _TEXT.split()
"""Words that are one token each in nearly every vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How requests are sent.

    model: the name to ask for. request_rate: requests a second, arriving at random (a Poisson process); inf is all at
    once. max_concurrency: requests under way at once; the others wait, and their clocks do not run. ignore_eos: ask the
    server to go on to the full length, which OpenAI's own API does not know. timeout_s: of one request, whole. Raises
    `ConfigError`.
    """

    model: str
    endpoint: Endpoint = "completions"
    request_rate: float = math.inf
    max_concurrency: int | None = None
    ignore_eos: bool = True
    timeout_s: float = 600.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.endpoint not in get_args(Endpoint):
            raise ConfigError(f"endpoint is {self.endpoint!r}; it must be one of {', '.join(get_args(Endpoint))}.")
        for name in ("request_rate", "timeout_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0.")
        if self.max_concurrency is not None and self.max_concurrency < 1:
            raise ConfigError(f"max_concurrency is {self.max_concurrency}; it must be at least 1.")

    def body(self, prompt: Seq[int], max_tokens: int) -> dict[str, Any]:
        """A request. A chat has as many words as `prompt` has tokens, which the server may count otherwise."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.ignore_eos:
            body["ignore_eos"] = True
        if self.endpoint == "completions":
            return {**body, "prompt": list(prompt)}
        content = " ".join(_WORDS[token_id % len(_WORDS)] for token_id in prompt)
        return {**body, "messages": [{"role": "user", "content": content}]}


async def measure_serving(url: ServerUrl, workload: Workload, load: Load, *, num_warmups: int = 1) -> ServingReport:
    """Sends every request of the workload once, after `num_warmups` that are not measured. Raises `BackendError` where
    one of those fails."""
    for _ in range(num_warmups):
        record = await ask(url, load, load.body(workload.prompts[0][:8], 2))
        if record.failure is not None:
            raise BackendError(f"the first request to the server failed: {record.failure}: {record.detail}.")
    cpu_start, start = time.process_time(), time.perf_counter()
    records = await _send_all(url, workload, load)
    seconds = time.perf_counter() - start
    cpu_share = (time.process_time() - cpu_start) / seconds
    return serving_report(workload, records, seconds=seconds, client_cpu_share=cpu_share)


async def ask(url: ServerUrl, load: Load, body: dict[str, Any]) -> RequestRecord:
    """One request, as it went; raises nothing that a server can cause."""
    record = RequestRecord(time.perf_counter())
    try:
        async with asyncio.timeout(load.timeout_s):
            async with contextlib.aclosing(post_events(url, _PATHS[load.endpoint], body)) as events:
                await _read(events, record)
    except TimeoutError:
        record.failure, record.detail = "timed out", f"no complete answer in {load.timeout_s:g} s"
    except AnswerError as error:
        record.failure, record.detail = error.kind, error.detail
    except OSError as error:
        record.failure, record.detail = type(error).__name__, str(error)
    return record


async def first_model(url: ServerUrl) -> str:
    """The first model that the server has. Raises `BackendError`."""
    try:
        return str((await get_json(url, "/v1/models"))["data"][0]["id"])
    except (AnswerError, OSError, LookupError, TypeError) as error:
        raise BackendError(f"the server does not say which model it has: {error!r}. Name one.") from error


async def _send_all(url: ServerUrl, workload: Workload, load: Load) -> list[RequestRecord]:
    randomness = random.Random(load.seed)
    places = asyncio.Semaphore(load.max_concurrency or len(workload.prompts))
    due_s = asyncio.get_running_loop().time()

    async def send(prompt: list[int], max_tokens: int) -> RequestRecord:
        async with places:
            return await ask(url, load, load.body(prompt, max_tokens))

    async with asyncio.TaskGroup() as group:
        tasks = []
        for prompt, max_tokens in zip(workload.prompts, workload.output_lens, strict=True):
            tasks.append(group.create_task(send(prompt, max_tokens)))
            due_s += randomness.expovariate(load.request_rate) if load.request_rate < math.inf else 0.0
            await asyncio.sleep(max(0.0, due_s - asyncio.get_running_loop().time()))
    return [task.result() for task in tasks]


async def _read(events: AsyncGenerator[tuple[float, bytes], None], record: RequestRecord) -> None:
    async for now_s, data in events:
        if data == b"[DONE]":
            record.end_s = now_s
            continue  # to the end of the body, so that the connection ends in order
        try:
            _see(json.loads(data), now_s, record)
        except (ValueError, TypeError, AttributeError) as error:
            raise AnswerError("not an answer", f"an event is {data[:80]!r}") from error
    if record.end_s is None:
        raise AnswerError("cut off", "the answer ended without [DONE]")
    if record.first_s is None and record.num_output_tokens:  # tokens without text, as special ones are
        record.first_s = record.last_s = record.end_s


def _see(event: Any, now_s: float, record: RequestRecord) -> None:
    error = event.get("error")
    if error:
        raise AnswerError("error event", str(error.get("message", error) if isinstance(error, dict) else error))
    if any(map(_brings_text, event.get("choices") or ())):
        record.see_text(now_s)
    usage = event.get("usage")
    if usage:
        record.num_prompt_tokens = usage.get("prompt_tokens")
        record.num_output_tokens = usage.get("completion_tokens")


def _brings_text(choice: dict[str, Any]) -> bool:
    """Whether there is text of any kind in a choice of an event: a chat's first event has only a role, a last one often
    only a reason."""
    delta = choice.get("delta") or {}
    return bool(choice.get("text") or any(value for name, value in delta.items() if name != "role"))
