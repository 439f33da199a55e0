"""create_app: puts the server together. Wiring only."""

from fastapi import FastAPI

from nanovllm import __version__
from nanovllm.async_llm import AsyncLLM
from nanovllm.server.admission import Admission
from nanovllm.server.auth import key_docs
from nanovllm.server.chat import chat_router
from nanovllm.server.chat_parser import check_parsers
from nanovllm.server.completions import completions_router
from nanovllm.server.context import ServerContext, served_names
from nanovllm.server.errors import add_error_handlers
from nanovllm.server.health import operations_router
from nanovllm.server.inference import inference_router
from nanovllm.server.metrics import Metrics
from nanovllm.server.middleware import add_middleware
from nanovllm.server.models import models_router
from nanovllm.server.rate_limits import RateLimits
from nanovllm.server.settings import ServerSettings
from nanovllm.server.tokens import tokens_router
from nanovllm.server.web_page import page_router

__all__ = ["create_app"]


def create_app(llm: AsyncLLM, settings: ServerSettings) -> FastAPI:
    """The ASGI app of one loaded model, which stays the caller's to close. Its `state.admission` can be drained.
    Raises `ConfigError` for parsers that there are not."""
    check_parsers(settings.tool_parser, settings.reasoning_parser)
    rate_limits = RateLimits(settings)
    metrics = Metrics(
        prefix=settings.metrics_prefix,
        model_name=served_names(llm, settings)[0],
        stats=llm.stats,
        max_model_len=llm.max_model_len,
        cache_config=_cache_config(llm),
    )
    admission = Admission(settings, metrics, rate_limits)
    context = ServerContext(llm=llm, settings=settings, admission=admission)
    app = FastAPI(title="nanovllm", version=__version__, docs_url=None, redoc_url=None)
    for make_router in (completions_router, chat_router, models_router, tokens_router, inference_router):
        app.include_router(make_router(context), dependencies=key_docs(settings))
    app.include_router(operations_router(llm, admission, metrics, key_docs(settings)))
    if settings.enable_page:
        app.include_router(page_router())
    add_error_handlers(app)
    add_middleware(app, settings, rate_limits, metrics)
    app.state.admission = admission
    return app


def _cache_config(llm: AsyncLLM) -> dict[str, str]:
    """In vLLM's words."""
    return {"num_gpu_blocks": str(llm.stats().num_kv_blocks), "cache_dtype": llm.model_info.kv_cache.dtype}
