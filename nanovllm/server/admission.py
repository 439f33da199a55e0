"""Admission: who may come in, and how many are in.

    request --admit--> Ticket: a place in the queue --observe(output)--> metrics, tokens of the key
                          `--release--> the place is free; at the latest when the HTTP request has ended

Runs in one event loop and never waits: a prompt gets its place at once, or is refused. Knows nothing about prompts and
answers but their lengths.
"""

import asyncio
import logging
from types import TracebackType
from typing import Self

from nanovllm.errors import NanoVLLMError
from nanovllm.outputs import RequestOutput
from nanovllm.sampling_params import SamplingParams
from nanovllm.server.errors import ApiError
from nanovllm.server.exchange import Exchange
from nanovllm.server.metrics import Meter, Metrics
from nanovllm.server.rate_limits import RateLimits
from nanovllm.server.settings import ServerSettings

__all__ = ["Admission", "Ticket"]

logger = logging.getLogger("nanovllm.server")

_RETRY_AFTER_FULL_S = 1
_RETRY_AFTER_DRAINING_S = 5


class Admission:
    """num_requests, num_tokens: prompts that hold a place, and their tokens."""

    def __init__(self, settings: ServerSettings, metrics: Metrics, rate_limits: RateLimits) -> None:
        self.num_requests = 0
        self.num_tokens = 0
        self._settings = settings
        self._metrics = metrics
        self._rate_limits = rate_limits
        self._is_draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def is_draining(self) -> bool:
        return self._is_draining

    def admit(self, exchange: Exchange, num_prompt_tokens: int, params: SamplingParams) -> "Ticket":
        """A place for one prompt, charged to the quota of the exchange's client.

        An exchange may hold several; what it has alone always fits, or it would never be served. Raises `ApiError`: 503
        where the server is full or draining, 429 where the client's tokens of this minute are used up.
        """
        self._check_room(exchange, num_prompt_tokens)
        self._rate_limits.take_prompt(exchange.client, num_prompt_tokens)
        ticket = Ticket(self, exchange, num_prompt_tokens, self._metrics.meter(num_prompt_tokens, params))
        self.num_requests += 1
        self.num_tokens += num_prompt_tokens
        self._idle.clear()
        exchange.tickets.append(ticket)
        exchange.num_prompt_tokens += num_prompt_tokens
        return ticket

    def drain(self) -> None:
        """Lets nobody in from now on."""
        self._is_draining = True

    async def wait_idle(self) -> None:
        """Returns when nobody holds a place."""
        await self._idle.wait()

    def leave(self, ticket: "Ticket", num_generation_tokens: int) -> None:
        """Takes a place back; called once for each ticket, by itself."""
        self.num_requests -= 1
        self.num_tokens -= ticket.num_prompt_tokens
        if not self.num_requests:
            self._idle.set()
        ticket.exchange.tickets.remove(ticket)
        ticket.exchange.num_generation_tokens += num_generation_tokens
        self._rate_limits.charge_generation(ticket.exchange.client, num_generation_tokens)

    def _check_room(self, exchange: Exchange, num_prompt_tokens: int) -> None:
        if self._is_draining:
            raise ApiError(
                503,
                "the server is shutting down; send the request to another one, or again later.",
                code="server_shutting_down",
                headers={"Retry-After": str(_RETRY_AFTER_DRAINING_S)},
            )
        if self.num_requests == len(exchange.tickets):
            return
        settings = self._settings
        full = None
        if self.num_requests >= settings.max_queued_requests:
            full = f"{self.num_requests} requests, and max_queued_requests is {settings.max_queued_requests}"
        elif self.num_tokens + num_prompt_tokens > settings.max_queued_tokens:
            full = f"{self.num_tokens} prompt tokens, and max_queued_tokens is {settings.max_queued_tokens}"
        if full is not None:
            self._metrics.num_rejected += 1
            raise ApiError(
                503,
                f"the server is full: it holds {full}. Send the request again later.",
                code="server_overloaded",
                headers={"Retry-After": str(_RETRY_AFTER_FULL_S)},
            )


class Ticket:
    """One prompt's place. A context manager: leaving it releases the place."""

    __slots__ = ("_admission", "_is_released", "_meter", "exchange", "num_prompt_tokens")

    def __init__(self, admission: Admission, exchange: Exchange, num_prompt_tokens: int, meter: Meter) -> None:
        self.exchange = exchange
        self.num_prompt_tokens = num_prompt_tokens
        self._admission = admission
        self._meter = meter
        self._is_released = False

    def observe(self, output: RequestOutput) -> None:
        """Takes note of an output of the engine; to be called for each, as soon as it is there."""
        self._meter.observe(output)

    def release(self, error: BaseException | None = None) -> None:
        """Gives the place back; the second time does nothing. error: what kept the request from its end, if it was
        the engine that failed; otherwise a request without an end was aborted."""
        if self._is_released:
            return
        self._is_released = True
        self._meter.close(failed=isinstance(error, NanoVLLMError))
        self._admission.leave(self, self._meter.num_generation_tokens)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release(error)
