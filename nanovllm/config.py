"""EngineConfig: every setting of the engine, checked when it is made and never changed afterwards.

In: plain values. Out: a frozen record. Knows nothing about the model; what depends on it (such as the number of KV
blocks) is settled when the engine is built.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from nanovllm.errors import ConfigError

__all__ = ["EngineConfig", "GenerationConfig", "KVCacheDtype", "SchedulingPolicy", "SpeculativeConfig", "check_keys"]

SchedulingPolicy = Literal["fcfs", "priority"]
GenerationConfig = Literal["auto", "none"]
KVCacheDtype = Literal["auto", "float32", "bfloat16", "int8"]
_DEFAULT_MAX_NUM_LOGITS = 256


@dataclass(frozen=True, kw_only=True)
class SpeculativeConfig:
    """Speculation by prompt lookup; the names are vLLM's where it has them.

    method: "ngram". num_speculative_tokens: drafts of a sequence in one step. prompt_lookup_max, prompt_lookup_min:
    longest and shortest end of the text, in tokens, that is looked for in what stands before it. max_num_seqs: no
    drafts while more sequences run. min_acceptance_rate: a sequence pauses when a smaller share of its drafts came
    true.
    """

    method: str = "ngram"
    num_speculative_tokens: int = 5
    prompt_lookup_max: int = 4
    prompt_lookup_min: int = 2
    max_num_seqs: int = 4
    min_acceptance_rate: float = 0.2

    def __post_init__(self) -> None:
        if self.method != "ngram":
            raise ConfigError(f"the speculative method is {self.method!r}; the only one is 'ngram'.")
        for name in ("num_speculative_tokens", "prompt_lookup_max", "prompt_lookup_min", "max_num_seqs"):
            _check_count(f"speculative_config: {name}", getattr(self, name))
        if self.prompt_lookup_min > self.prompt_lookup_max:
            raise ConfigError(
                f"prompt_lookup_min is {self.prompt_lookup_min} and prompt_lookup_max {self.prompt_lookup_max}; the "
                "first must not be the larger."
            )
        rate = self.min_acceptance_rate
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
            raise ConfigError(f"min_acceptance_rate is {rate!r}; it must be a number from 0 to 1.")

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "SpeculativeConfig":
        """As the constructor, but an unknown key raises `ConfigError` with the nearest known one."""
        check_keys(options, cls, of="speculative_config")
        return cls(**options)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Settings of one engine; the names are vLLM's where it has them. None means "decide from model and machine".

    model: folder, Hugging Face hub id, or "tiny-chat" (the model in the box).
    tokenizer: folder or hub id, where it is not the model's.
    backend, tokenizer_backend: plugin names; otherwise the best that can load the model.
    revision: branch, tag or commit of a hub id.
    max_model_len: longest prompt + output, in tokens; default the model's own.
    max_num_seqs: sequences that run at once. max_num_batched_tokens: token budget of one step.
    block_size: tokens of a KV block. num_kv_blocks: blocks of the pool; default what kv_cache_memory_bytes holds,
    which defaults to half of the free memory, and to no more than max_num_seqs full sequences can use.
    kv_cache_dtype: "float32", "bfloat16" or "int8", in which keys and values are kept; "auto": the backend's own.
    max_num_logits: rows of logits of one step, which bounds their memory where prompt_logprobs or drafts want many;
    default 256, or twice max_num_seqs where that is more.
    enable_prefix_caching, enable_chunked_prefill, scheduling_policy ("fcfs" or "priority"): as vLLM's.
    priority_aging_steps: steps of waiting that are worth one level of priority, so that nothing starves.
    async_scheduling: whether the next step is prepared and submitted while the runner computes one, where the tokens
    are not needed for that; None: where the backend can; True: an error where it cannot.
    speculative_config: guesses at the next tokens, verified at once; `from_options` takes a mapping; None = none.
    generation_config: "auto" takes sampling defaults from the model, "none" does not; as vLLM's "auto" and "vllm".
    seed: seed of requests that carry none. num_threads: compute threads; default the physical cores at hand.
    tensor_parallel_size: processes among which the model is divided, for backends that can; num_threads is for all.
    backend_options: passed to the backend, which refuses keys that it does not know.
    """

    model: str = "tiny-chat"
    tokenizer: str | None = None
    backend: str | None = None
    tokenizer_backend: str | None = None
    revision: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    block_size: int | None = None
    num_kv_blocks: int | None = None
    kv_cache_memory_bytes: int | None = None
    kv_cache_dtype: KVCacheDtype = "auto"
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    scheduling_policy: SchedulingPolicy = "fcfs"
    priority_aging_steps: int = 1000
    async_scheduling: bool | None = None
    max_num_logits: int | None = None
    speculative_config: SpeculativeConfig | None = None
    generation_config: GenerationConfig = "auto"
    seed: int = 0
    num_threads: int | None = None
    tensor_parallel_size: int = 1
    backend_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "priority_aging_steps", "tensor_parallel_size"):
            _check_count(name, getattr(self, name))
        for name in _OPTIONAL_COUNTS:
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name))
        for name in ("tokenizer", "backend", "tokenizer_backend", "revision"):
            if getattr(self, name) is not None:
                _check_text(name, getattr(self, name))
        _check_text("model", self.model)
        for name in ("enable_prefix_caching", "enable_chunked_prefill"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be True or False.")
        if not isinstance(self.async_scheduling, bool | None):
            raise ConfigError(f"async_scheduling is {self.async_scheduling!r}; it must be True, False or None.")
        if self.async_scheduling and self.speculative_config is not None:
            raise ConfigError(
                "async_scheduling and speculative_config are both set, but a guess at the next tokens needs the last "
                "one to be known. Leave one of them out."
            )
        if not isinstance(self.backend_options, Mapping):
            raise ConfigError(f"backend_options is {self.backend_options!r}; it must be a mapping of names to values.")
        for name in self.backend_options:
            if not isinstance(name, str):
                raise ConfigError(f"backend_options has the key {name!r}; its keys must be strings.")
        if not isinstance(self.speculative_config, SpeculativeConfig | None):
            raise ConfigError(
                f"speculative_config is {self.speculative_config!r}; it must be a SpeculativeConfig, or a mapping of "
                "its options where the engine's own are given as a mapping."
            )
        if self.generation_config not in ("auto", "none"):
            raise ConfigError(f"generation_config is {self.generation_config!r}; it must be 'auto' or 'none'.")
        if self.kv_cache_dtype not in get_args(KVCacheDtype):
            allowed = ", ".join(map(repr, get_args(KVCacheDtype)))
            raise ConfigError(f"kv_cache_dtype is {self.kv_cache_dtype!r}; it must be one of {allowed}.")
        if self.max_num_logits is not None and self.max_num_logits <= self.max_num_seqs:
            raise ConfigError(
                f"max_num_logits ({self.max_num_logits}) must be above max_num_seqs ({self.max_num_seqs}): every "
                "running sequence needs a row, and something must be left over. Raise the one or lower the other."
            )
        if self.scheduling_policy not in ("fcfs", "priority"):
            raise ConfigError(f"scheduling_policy is {self.scheduling_policy!r}; it must be 'fcfs' or 'priority'.")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed is {self.seed!r}; it must be an integer from 0 to 2**64 - 1.")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) is below max_num_seqs ({self.max_num_seqs}): "
                "a step could not decode every running sequence. Raise the one or lower the other."
            )

    @property
    def logits_limit(self) -> int:
        """Rows of logits that one step may have."""
        return self.max_num_logits or max(_DEFAULT_MAX_NUM_LOGITS, 2 * self.max_num_seqs)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "EngineConfig":
        """As the constructor, from plain values; an unknown key raises `ConfigError` with the nearest known one."""
        check_keys(options, cls, of="the engine")
        speculative = options.get("speculative_config")
        if isinstance(speculative, Mapping):
            options = {**options, "speculative_config": SpeculativeConfig.from_options(speculative)}
        return cls(**options)


_OPTIONAL_COUNTS = (
    "max_model_len",
    "block_size",
    "num_kv_blocks",
    "kv_cache_memory_bytes",
    "num_threads",
    "max_num_logits",
)


def check_keys(options: Mapping[str, Any], record: type, *, of: str) -> None:
    """Raises `ConfigError`, with the nearest known one, for a key of options that is no field of the dataclass. For
    backends as well. of: whose options these are, such as "backend 'torch'"."""
    known = [f.name for f in fields(record)]
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known options: {', '.join(known)}."
            raise ConfigError(f"unknown option {key!r} of {of}. {hint}")


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} is {value!r}; it must be an integer of at least 1.")


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name} is {value!r}; it must be a non-empty string.")
