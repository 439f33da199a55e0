"""HTTP/1.1 as uvicorn speaks it, with a limit on the time that the head of a request may take.

Without one, whoever opens connections and sends nothing, or half of a head, holds them for ever. What follows the head
is bounded by the settings.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["HEAD_TIMEOUT_S", "make_protocol"]

HEAD_TIMEOUT_S = 30.0
"""From the connection, or on a kept one from the first byte of a further request, to the end of the request's head."""


def make_protocol(head_timeout_s: float = HEAD_TIMEOUT_S) -> type[H11Protocol]:
    """For `uvicorn.Config(http=...)`."""

    class BoundedHeads(H11Protocol):
        """Closes a connection whose next request does not begin in time."""

        _head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait_for_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._is_answering():
                self._stop_waiting()
            elif self._head_timer is None:
                self._wait_for_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _is_answering(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _wait_for_head(self) -> None:
            self._head_timer = self.loop.call_later(head_timeout_s, self._give_up)

        def _stop_waiting(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _give_up(self) -> None:
            self._head_timer = None
            if not self._is_answering():
                self.transport.close()

    return BoundedHeads
