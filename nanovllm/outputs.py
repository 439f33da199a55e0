"""What a user gets back: small frozen records, picklable, without a tie to the engine that made them."""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["CompletionOutput", "EngineStats", "FinishReason", "RequestOutput"]


class FinishReason(StrEnum):
    """Why a sequence ended: an end-of-sequence or stop token or string, a length limit, or the caller's abort."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One continuation of a prompt.

    text, token_ids: all so far, or only what is new where the request asked for deltas. The token that ended the
    sequence is among token_ids; its text is not in `text`, nor is a stop string (unless it was asked for).
    finish_reason: None while it runs. stop_reason: the stop string or stop token id that ended it; None for the
    model's own end of sequence, as in vLLM.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """What is known of a request. `num_cached_tokens`: prompt tokens that the prefix cache saved computing."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot of the engine. Counters only grow; gauges are of now. Tokens unless a name says otherwise.

    prefix_cache_queries: prompt tokens looked up; prefix_cache_hits: those found. prefill_tokens and decode_tokens:
    computed so far; of a step's tokens, those that ended in a sample count as decode when they were alone.
    num_preemptions, num_finished_requests: sequences. kv_cache_usage: share of blocks in use, 0 to 1.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_kv_blocks: int = 0
    num_free_kv_blocks: int = 0
    num_steps: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    num_preemptions: int = 0
    num_finished_requests: int = 0

    @property
    def kv_cache_usage(self) -> float:
        return 1.0 - self.num_free_kv_blocks / self.num_kv_blocks if self.num_kv_blocks else 0.0

    @property
    def prefix_cache_hit_rate(self) -> float:
        return self.prefix_cache_hits / self.prefix_cache_queries if self.prefix_cache_queries else 0.0
