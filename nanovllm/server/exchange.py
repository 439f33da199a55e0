"""Exchange: one HTTP request and its answer, as far as operating the server is concerned.

The outermost middleware makes one for each request and closes it when the answer has ended, however it ended; in
between, whoever handles the request finds it by `exchange_of`. Knows nothing about what is asked.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanovllm.server.admission import Ticket

__all__ = ["Exchange", "exchange_of"]

_SCOPE_KEY = "nanovllm.exchange"


@dataclass(eq=False, slots=True)
class Exchange:
    """request_id: as X-Request-Id has it. client: whose quota it is charged to: an abbreviated digest of its key, or
    its address. num_prompt_tokens, num_generation_tokens: so far, over all its prompts. tickets: places that it holds.
    """

    request_id: str
    client: str = ""
    num_prompt_tokens: int = 0
    num_generation_tokens: int = 0
    tickets: "list[Ticket]" = field(default_factory=list)

    def close(self) -> None:
        """Gives back every place that is still held."""
        for ticket in list(self.tickets):
            ticket.release()

    def put(self, scope: MutableMapping[str, Any]) -> None:
        """Makes it what `exchange_of` finds."""
        scope[_SCOPE_KEY] = self


def exchange_of(scope: MutableMapping[str, Any]) -> Exchange:
    """The exchange that an ASGI scope (such as `request.scope`) belongs to."""
    exchange = scope.get(_SCOPE_KEY)
    assert isinstance(exchange, Exchange), "add_middleware has not been called for this app"
    return exchange
