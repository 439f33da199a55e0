"""Rate limits: what one key may ask for in a minute, in requests and in tokens.

In: a client's name and amounts. Out: nothing, or an `ApiError` (429) with Retry-After; and OpenAI's x-ratelimit-*
headers. Windows are fixed minutes that begin with a client's first request. Prompts are charged when they come in, new
tokens when they have been made: a client may overdraw its tokens once, and then waits for the next minute.
"""

import math
import time
from collections.abc import MutableMapping

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanovllm.server.errors import ApiError, error_response
from nanovllm.server.exchange import exchange_of
from nanovllm.server.settings import ServerSettings

__all__ = ["RATE_LIMIT_HEADERS", "RateLimitMiddleware", "RateLimits"]

RATE_LIMIT_HEADERS = tuple(
    f"x-ratelimit-{what}-{unit}" for what in ("limit", "remaining", "reset") for unit in ("requests", "tokens")
)
"""Those that answers may have."""


class RateLimits:
    """The quotas of all clients; without limits in the settings it lets everything pass."""

    def __init__(self, settings: ServerSettings) -> None:
        self._limiter = FixedWindowRateLimiter(MemoryStorage())
        self._requests = _per_minute(settings.requests_per_minute, "requests")
        self._tokens = _per_minute(settings.tokens_per_minute, "tokens")

    def take_request(self, client: str) -> None:
        """Charges one request; refuses where requests or tokens are used up."""
        if self._tokens is not None and not self._limiter.test(self._tokens, client):
            raise self._refusal(self._tokens, client)
        if self._requests is not None and not self._limiter.hit(self._requests, client):
            raise self._refusal(self._requests, client)

    def take_prompt(self, client: str, num_tokens: int) -> None:
        """Charges a prompt, or refuses it."""
        limit = self._tokens
        if limit is None:
            return
        if num_tokens > limit.amount:
            raise ApiError(
                429,
                f"the prompt has {num_tokens} tokens, and this key may use {limit.amount} in a minute. Shorten it.",
                code="rate_limit_exceeded",
                type="tokens",
                headers={"x-should-retry": "false"},
            )
        if not self._limiter.test(limit, client, cost=num_tokens):
            raise self._refusal(limit, client)
        self._limiter.hit(limit, client, cost=num_tokens)

    def charge_generation(self, client: str, num_tokens: int) -> None:
        """Charges new tokens, which have been made already."""
        if self._tokens is not None and num_tokens:
            self._limiter.hit(self._tokens, client, cost=num_tokens)

    def headers(self, client: str) -> MutableMapping[str, str]:
        """What is left to a client, in the headers of OpenAI's names."""
        headers = {}
        for limit in (self._requests, self._tokens):
            if limit is not None:
                reset_s, remaining = self._window(limit, client)
                headers[f"x-ratelimit-limit-{limit.namespace}"] = str(limit.amount)
                headers[f"x-ratelimit-remaining-{limit.namespace}"] = str(remaining)
                headers[f"x-ratelimit-reset-{limit.namespace}"] = f"{reset_s:.3f}s"
        return headers

    def _window(self, limit: RateLimitItem, client: str) -> tuple[float, int]:
        """Seconds until the window ends, and what is left in it."""
        stats = self._limiter.get_window_stats(limit, client)
        return max(0.0, stats.reset_time - time.time()), max(0, stats.remaining)

    def _refusal(self, limit: RateLimitItem, client: str) -> ApiError:
        reset_s, _ = self._window(limit, client)
        retry_after_s = max(1, math.ceil(reset_s))
        return ApiError(
            429,
            f"this key's {limit.amount} {limit.namespace} a minute are used up. Wait {retry_after_s} s.",
            code="rate_limit_exceeded",
            type=limit.namespace,
            headers={"Retry-After": str(retry_after_s)},
        )


class RateLimitMiddleware:
    """Charges every POST to its client, and tells each client in each answer what is left."""

    def __init__(self, app: ASGIApp, *, rate_limits: RateLimits) -> None:
        self._app = app
        self._rate_limits = rate_limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        client = exchange_of(scope).client

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._rate_limits.headers(client))
            await send(message)

        try:
            self._rate_limits.take_request(client)
        except ApiError as error:
            await error_response(error)(scope, receive, send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)


def _per_minute(amount: int | None, unit: str) -> RateLimitItem | None:
    return None if amount is None else RateLimitItemPerMinute(amount, namespace=unit)
