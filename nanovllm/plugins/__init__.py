"""Everything that the author of a backend or tokenizer plugin imports."""

from nanovllm.batch import LAST_SAMPLED, Batch, SamplingBatch, StepOutput, last_sampled_rows
from nanovllm.model_info import KVCacheInfo, ModelInfo, TensorInfo
from nanovllm.plugins.hookspecs import hookimpl
from nanovllm.plugins.interfaces import LogitsModelRunner, ModelRunner, PendingStep, Tokenizer
from nanovllm.plugins.records import KVMode, ModelRunnerPlugin, ModelSource, TokenizerPlugin, Verdict

__all__ = [
    "LAST_SAMPLED",
    "Batch",
    "KVCacheInfo",
    "KVMode",
    "LogitsModelRunner",
    "ModelInfo",
    "ModelRunner",
    "ModelRunnerPlugin",
    "ModelSource",
    "PendingStep",
    "SamplingBatch",
    "StepOutput",
    "TensorInfo",
    "Tokenizer",
    "TokenizerPlugin",
    "Verdict",
    "hookimpl",
    "last_sampled_rows",
]
