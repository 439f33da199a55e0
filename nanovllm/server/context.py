"""ServerContext: what every route needs, handed to it when the app is put together."""

import time
from dataclasses import dataclass, field

import xxhash

import nanovllm
from nanovllm.async_llm import AsyncLLM
from nanovllm.server.admission import Admission
from nanovllm.server.errors import ApiError
from nanovllm.server.protocol.base import RequestModel
from nanovllm.server.refused_fields import UnknownFields, check_refused
from nanovllm.server.settings import ServerSettings

__all__ = ["ServerContext", "served_names"]


def served_names(llm: AsyncLLM, settings: ServerSettings) -> tuple[str, ...]:
    """Those of the settings, or else the model's own."""
    return settings.served_model_names or (llm.model_info.model_name,)


@dataclass(frozen=True, kw_only=True)
class ServerContext:
    """created_s: since when the model is served, in seconds of the Unix epoch."""

    llm: AsyncLLM
    settings: ServerSettings
    admission: Admission
    unknown_fields: UnknownFields = field(default_factory=UnknownFields)
    created_s: int = field(default_factory=lambda: int(time.time()))

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names under which the model is served; the first stands in answers to requests that name none."""
        return served_names(self.llm, self.settings)

    @property
    def system_fingerprint(self) -> str:
        """The same for servers whose answers to one seeded request are the same, as far as they can know."""
        info = self.llm.model_info
        facts = (nanovllm.__version__, info.model_name, info.dtype, info.device, info.quantization)
        return "fp_" + xxhash.xxh3_64_hexdigest(repr(facts).encode())

    def model_name(self, wanted: str | None) -> str:
        """The name to answer with. Raises `ApiError` (404) where nothing is served under the name."""
        names = self.model_names
        if wanted is None:
            return names[0]
        if wanted not in names:
            message = f"the model {wanted!r} does not exist; this server has {', '.join(map(repr, names))}."
            raise ApiError(404, message, param="model", code="model_not_found")
        return wanted

    def check_fields(self, request: RequestModel, *, is_chat: bool = False) -> None:
        """Raises `ApiError` (400) for a known field that is not honoured; warns of those that nobody knows."""
        sent = request.unknown_fields()
        if sent:
            check_refused(sent, is_chat=is_chat)
            self.unknown_fields.warn(sent)
