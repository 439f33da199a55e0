"""nanovllm: a small LLM inference engine with pluggable backends."""

from typing import TYPE_CHECKING, Any

from nanovllm.config import EngineConfig, SpeculativeConfig
from nanovllm.errors import (
    BackendError,
    BackendLostError,
    ChatTemplateError,
    CheckpointError,
    ConfigError,
    ExportError,
    KVCacheError,
    ModelError,
    ModelInfoError,
    ModelNotFoundError,
    NanoVLLMError,
    PluginError,
    PluginNotFoundError,
    PromptError,
    RequestError,
    SamplingParamsError,
    UnsupportedModelError,
)
from nanovllm.llm import LLM
from nanovllm.outputs import (
    CompletionOutput,
    EngineStats,
    FinishReason,
    Logprob,
    RequestMetrics,
    RequestOutput,
    TokenLogprobs,
)
from nanovllm.sampling_params import RequestOutputKind, SamplingParams
from nanovllm.structured_outputs import StructuredOutputsParams

if TYPE_CHECKING:
    from nanovllm.async_llm import AsyncLLM

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "AsyncLLM",
    "BackendError",
    "BackendLostError",
    "ChatTemplateError",
    "CheckpointError",
    "CompletionOutput",
    "ConfigError",
    "EngineConfig",
    "EngineStats",
    "ExportError",
    "FinishReason",
    "KVCacheError",
    "Logprob",
    "ModelError",
    "ModelInfoError",
    "ModelNotFoundError",
    "NanoVLLMError",
    "PluginError",
    "PluginNotFoundError",
    "PromptError",
    "RequestError",
    "RequestMetrics",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "SamplingParamsError",
    "SpeculativeConfig",
    "StructuredOutputsParams",
    "TokenLogprobs",
    "UnsupportedModelError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """AsyncLLM is imported when it is asked for: asyncio takes longer than all the rest."""
    if name == "AsyncLLM":
        from nanovllm.async_llm import AsyncLLM

        return AsyncLLM
    raise AttributeError(f"module 'nanovllm' has no attribute {name!r}")
