"""What a user gets back: small frozen records, picklable, without a tie to the engine that made them."""

from dataclasses import dataclass
from enum import StrEnum

from nanovllm.errors import NanoVLLMError

__all__ = [
    "STEP_TOKEN_BOUNDS",
    "CompletionOutput",
    "EngineStats",
    "FinishReason",
    "Logprob",
    "RequestMetrics",
    "RequestOutput",
    "TokenLogprobs",
]


class FinishReason(StrEnum):
    """Why a sequence ended: an end-of-sequence or stop token or string, a length limit, the caller's abort, or an error
    of the model runner."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token's natural log-probability under the model's own distribution, before penalties and temperature.

    rank: 1 = the likeliest. decoded_token: its text; half a character is shown as U+FFFD.
    """

    logprob: float
    rank: int
    decoded_token: str


TokenLogprobs = dict[int, Logprob]
"""By token id: first the token that stands there, then the likeliest, as many as were asked for."""


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One continuation of a prompt.

    index: which of the `SamplingParams.n` continuations. text, token_ids, logprobs: all so far, or only what is new
    where the request asked for deltas. The token that ended the sequence is among token_ids; its text is not in `text`,
    nor is a stop string (unless it was asked for). finish_reason: None while it runs. stop_reason: the stop string or
    stop token id that ended it; None for the model's own end of sequence, as in vLLM. logprobs: one for each of
    token_ids, cumulative_logprob: the sum of all chosen tokens' so far; None where they were not asked for.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    cumulative_logprob: float | None = None
    logprobs: list[TokenLogprobs] | None = None


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """When what happened to a request, in seconds of `time.monotonic()`; None = not yet.

    arrival_s: submitted. scheduled_s: first given to the runner. first_token_s, last_token_s: the end of the step that
    sampled its first and its latest token. num_generation_tokens: sampled so far, over all
    num_completions continuations. num_preemptions: times that a continuation lost its blocks and was computed again.
    num_draft_tokens, num_accepted_tokens: proposed by speculation, and confirmed.
    """

    arrival_s: float
    scheduled_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    num_generation_tokens: int = 0
    num_completions: int = 1
    num_preemptions: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0

    @property
    def queue_time_s(self) -> float | None:
        """From arrival to the first step."""
        return None if self.scheduled_s is None else self.scheduled_s - self.arrival_s

    @property
    def prefill_time_s(self) -> float | None:
        """From the first step to the first token."""
        if self.first_token_s is None or self.scheduled_s is None:
            return None
        return self.first_token_s - self.scheduled_s

    @property
    def time_to_first_token_s(self) -> float | None:
        return None if self.first_token_s is None else self.first_token_s - self.arrival_s

    @property
    def decode_time_s(self) -> float | None:
        """From the first token to the latest."""
        if self.first_token_s is None or self.last_token_s is None:
            return None
        return self.last_token_s - self.first_token_s

    @property
    def inter_token_latency_s(self) -> float | None:
        """Mean time from one token of a continuation to the next; None where none has two."""
        num_gaps = self.num_generation_tokens - self.num_completions
        return (
            None if self.decode_time_s is None or num_gaps < 1 else self.decode_time_s * self.num_completions / num_gaps
        )


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """What is known of a request.

    outputs: while it runs, the continuations that have something new; at the end of a request that asked for nothing
    before (`RequestOutputKind.FINAL_ONLY`), all of them in order. finished: no continuation runs any more.
    num_cached_tokens: prompt tokens that the prefix cache saved computing. prompt_logprobs: one entry for each token of
    the prompt, the first None because nothing predicts it; None where they were not asked for, and until they are
    complete. metrics: of a finished request. error: why it could
    not be finished: the model runner failed on it, or its structured output has no next token.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    metrics: RequestMetrics | None = None
    error: NanoVLLMError | None = None


STEP_TOKEN_BOUNDS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Sizes of steps, in tokens, that `EngineStats.num_steps_by_tokens` tells apart: vLLM's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot of the engine. Counters only grow; gauges are of now. Tokens unless a name says otherwise.

    num_running, num_waiting, num_preemptions: sequences. prefix_cache_queries: prompt tokens looked up;
    prefix_cache_hits: those found. prefill_tokens and decode_tokens: computed so far; a sequence that has only its last
    token (and drafts) to compute decodes. generation_tokens: sampled. num_draft_tokens, num_accepted_tokens: proposed
    by speculation, and confirmed. num_finished_requests: also those aborted or failed. last_step_num_seqs,
    last_step_num_tokens: of the latest step. kv_block_size: tokens of a block. num_steps_by_tokens: steps by their
    tokens, between the bounds of `STEP_TOKEN_BOUNDS`, each inclusive; the last are above all. kv_cache_usage: share of
    blocks in use, 0 to 1.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_kv_blocks: int = 0
    num_free_kv_blocks: int = 0
    num_steps: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    generation_tokens: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    num_preemptions: int = 0
    num_finished_requests: int = 0
    num_failed_requests: int = 0
    last_step_num_seqs: int = 0
    last_step_num_tokens: int = 0
    kv_block_size: int = 0
    num_steps_by_tokens: tuple[int, ...] = (0,) * (len(STEP_TOKEN_BOUNDS) + 1)

    @property
    def kv_cache_usage(self) -> float:
        return 1.0 - self.num_free_kv_blocks / self.num_kv_blocks if self.num_kv_blocks else 0.0

    @property
    def prefix_cache_hit_rate(self) -> float:
        return self.prefix_cache_hits / self.prefix_cache_queries if self.prefix_cache_queries else 0.0
