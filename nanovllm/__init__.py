"""nanovllm: a small LLM inference engine with pluggable backends."""

from nanovllm.config import EngineConfig
from nanovllm.errors import (
    BackendError,
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
from nanovllm.outputs import CompletionOutput, EngineStats, FinishReason, RequestOutput
from nanovllm.sampling_params import RequestOutputKind, SamplingParams

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "BackendError",
    "ChatTemplateError",
    "CheckpointError",
    "CompletionOutput",
    "ConfigError",
    "EngineConfig",
    "EngineStats",
    "ExportError",
    "FinishReason",
    "KVCacheError",
    "ModelError",
    "ModelInfoError",
    "ModelNotFoundError",
    "NanoVLLMError",
    "PluginError",
    "PluginNotFoundError",
    "PromptError",
    "RequestError",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "SamplingParamsError",
    "UnsupportedModelError",
    "__version__",
]
