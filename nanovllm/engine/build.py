"""The one place that wires an engine: picks plugins, sizes the KV cache, passes collaborators in."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from nanovllm.checkpoint import MODEL_IN_THE_BOX, resolve_model
from nanovllm.config import EngineConfig
from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.engine import LLMEngine
from nanovllm.errors import ConfigError, KVCacheError, NanoVLLMError, PluginError, PluginNotFoundError
from nanovllm.plugins.interfaces import ModelRunner, Tokenizer
from nanovllm.plugins.manager import PluginManager
from nanovllm.plugins.records import KVMode, ModelRunnerPlugin, ModelSource
from nanovllm.resources import available_memory_bytes

__all__ = ["KVGeometry", "LoadedModel", "assemble_engine", "build_engine", "plan_kv_cache"]

logger = logging.getLogger("nanovllm")
MadeT = TypeVar("MadeT", ModelRunner, Tokenizer)

KV_MEMORY_SHARE = 0.5  # of the free memory, where the user sets nothing


@dataclass(frozen=True, slots=True)
class KVGeometry:
    """Size of the KV cache: blocks of block_size tokens, and the longest sequence that it is used for, in tokens."""

    num_blocks: int
    block_size: int
    max_model_len: int


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model as an engine uses it, and the folder (None: no folder) that its chat template is read from."""

    engine: LLMEngine
    folder: Path | None


def build_engine(config: EngineConfig, plugins: PluginManager | None = None) -> LoadedModel:
    """An engine ready to serve. Raises ModelError, PluginError, ConfigError or KVCacheError."""
    plugins = plugins or PluginManager.discover()
    source = _resolve(config, plugins)
    plugin = plugins.select_model_runner(source, config.backend, tensor_parallel_size=config.tensor_parallel_size)
    tokenizer, tokenizer_folder = _load_tokenizer(config, plugins, source, plugin)
    runner = _make("backend", plugin.name, source, lambda: plugin.factory(source, config))
    try:
        engine = assemble_engine(runner, tokenizer, config, runner.kv or plugin.kv)
    except BaseException:
        runner.close()
        raise
    return LoadedModel(engine, tokenizer_folder)


def assemble_engine(
    runner: ModelRunner,
    tokenizer: Tokenizer,
    config: EngineConfig,
    kv: KVMode = "paged",
    *,
    free_memory_bytes: int | None = None,
) -> LLMEngine:
    """An engine around a runner whose KV cache is sized and allocated here; by default from the machine's memory."""
    _check_speculation(runner, config, kv)
    _check_kv_cache_dtype(runner, config)
    overlap = _overlap(runner, config, kv)
    free = available_memory_bytes() if free_memory_bytes is None else free_memory_bytes
    geometry = plan_kv_cache(runner, config, kv, free)
    runner.allocate_kv_cache(geometry.num_blocks, geometry.block_size)
    caching = config.enable_prefix_caching and kv == "paged"
    blocks = BlockManager(geometry.num_blocks, geometry.block_size, enable_prefix_caching=caching)
    return LLMEngine(
        runner, tokenizer, blocks, config, geometry.max_model_len, isolate_failures=kv == "paged", overlap=overlap
    )


def _check_speculation(runner: ModelRunner, config: EngineConfig, kv: KVMode) -> None:
    if config.speculative_config is not None and (kv != "paged" or "drafts" not in runner.honours):
        raise ConfigError(
            "speculative_config is set, but this backend cannot take back a token that was guessed wrong. Leave it out."
        )


def _overlap(runner: ModelRunner, config: EngineConfig, kv: KVMode) -> bool:
    """Whether steps are submitted ahead: a step may have to be taken back, which only blocks allow."""
    can_overlap = runner.overlaps and kv == "paged"
    if config.async_scheduling and not can_overlap:
        raise ConfigError(
            "async_scheduling is True, but this backend takes a step only when the one before has been computed. Leave "
            "it out."
        )
    return can_overlap and config.async_scheduling is not False and config.speculative_config is None


def _check_kv_cache_dtype(runner: ModelRunner, config: EngineConfig) -> None:
    if config.kv_cache_dtype != "auto" and config.kv_cache_dtype not in runner.kv_cache_dtypes:
        allowed = ", ".join(repr(name) for name in ("auto", *sorted(runner.kv_cache_dtypes)))
        raise ConfigError(
            f"kv_cache_dtype is {config.kv_cache_dtype!r}; for this model this backend takes {allowed}. Choose one of "
            "these, or leave it out."
        )


def plan_kv_cache(runner: ModelRunner, config: EngineConfig, kv: KVMode, free_memory_bytes: int) -> KVGeometry:
    """How many blocks of what size. Raises `KVCacheError` where not even one sequence fits."""
    max_model_len = _max_model_len(config, runner.model_info.max_model_len)
    if kv == "per_sequence" and config.block_size is not None:
        raise ConfigError(
            f"block_size is {config.block_size}, but this backend keeps its state by the sequence, not by the block. "
            "Leave block_size out."
        )
    block_size = max_model_len if kv == "per_sequence" else config.block_size or runner.preferred_block_size
    blocks_per_sequence = -(-max_model_len // block_size)
    num_blocks = config.num_kv_blocks
    if num_blocks is None:
        num_blocks = config.max_num_seqs * blocks_per_sequence
        bytes_per_block = runner.kv_bytes_per_block(block_size)
        if bytes_per_block:
            budget = config.kv_cache_memory_bytes or _kv_budget(runner, free_memory_bytes)
            num_blocks = min(num_blocks, budget // bytes_per_block)
    if num_blocks < blocks_per_sequence:
        if config.max_model_len is not None or num_blocks * block_size < 2 or kv == "per_sequence":
            raise KVCacheError(_too_small(num_blocks, block_size, max_model_len, runner))
        max_model_len = num_blocks * block_size
        logger.warning("the KV cache holds %d tokens: max_model_len is lowered to that", max_model_len)
    if not config.enable_chunked_prefill and config.max_num_batched_tokens < max_model_len:
        raise ConfigError(
            f"without chunked prefill a step must hold a whole prompt, but max_num_batched_tokens is "
            f"{config.max_num_batched_tokens} and max_model_len {max_model_len}. Raise the one or lower the other."
        )
    return KVGeometry(num_blocks, block_size, max_model_len)


def _kv_budget(runner: ModelRunner, free_memory_bytes: int) -> int:
    """Bytes for the KV cache where the user says nothing."""
    on_device = runner.kv_memory_bytes()
    return int(free_memory_bytes * KV_MEMORY_SHARE) if on_device is None else on_device


def _too_small(num_blocks: int, block_size: int, max_model_len: int, runner: ModelRunner) -> str:
    needed = -(-max_model_len // block_size)
    return (
        f"the KV cache has {num_blocks} blocks of {block_size} tokens; one sequence of max_model_len {max_model_len} "
        f"needs {needed} ({needed * runner.kv_bytes_per_block(block_size) / 2**20:.1f} MiB). Raise num_kv_blocks or "
        "kv_cache_memory_bytes, or lower max_model_len."
    )


def _max_model_len(config: EngineConfig, longest: int) -> int:
    if config.max_model_len is None:
        return longest
    if config.max_model_len > longest:
        raise ConfigError(f"max_model_len is {config.max_model_len}; this model takes at most {longest} tokens.")
    if config.max_model_len < 2:
        raise ConfigError("max_model_len is 1; it must be at least 2: one token of prompt and one of output.")
    return config.max_model_len


def _resolve(config: EngineConfig, plugins: PluginManager) -> ModelSource:
    """The model's folder; a backend that was named and needs none takes any name."""
    named = plugins.named_model_runner(config.backend)
    is_local = config.model == MODEL_IN_THE_BOX or Path(config.model).is_dir()
    if named is not None and not named.needs_folder and not is_local:
        return ModelSource(config.model, None)
    return ModelSource(config.model, resolve_model(config.model, config.revision))


def _load_tokenizer(
    config: EngineConfig, plugins: PluginManager, source: ModelSource, plugin: ModelRunnerPlugin
) -> tuple[Tokenizer, Path | None]:
    name = config.tokenizer_backend
    if config.tokenizer is not None:
        source = ModelSource(config.tokenizer, resolve_model(config.tokenizer))
    elif source.folder is None:
        name = name or plugin.tokenizer
        if name is None:
            raise PluginNotFoundError(f"backend {plugin.name!r} names no tokenizer: give one with tokenizer=FOLDER.")
    record = plugins.select_tokenizer(source, name)
    return _make("tokenizer", record.name, source, lambda: record.factory(source)), source.folder


def _make(what: str, name: str, source: ModelSource, factory: Callable[[], MadeT]) -> MadeT:
    """What a plugin's factory makes. An exception that is not ours becomes a `PluginError`."""
    try:
        return factory()
    except NanoVLLMError:
        raise
    except Exception as error:
        raise PluginError(
            f"the {what} {name!r} could not load {source.name!r}: {type(error).__name__}: {error}"
        ) from error
