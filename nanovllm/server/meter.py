"""Meter: watches the outputs of one prompt's request, and writes what it sees into histograms.

In: each output, at the time when the server gets it. Times between tokens are those of outputs; where an output holds
several tokens of a continuation, the time since the last one is shared between them. A request that has only a last
output is judged by the engine's own times. Knows nothing about Prometheus.
"""

import time
from dataclasses import dataclass, field, fields

from nanovllm.outputs import CompletionOutput, FinishReason, RequestMetrics, RequestOutput
from nanovllm.sampling_params import RequestOutputKind, SamplingParams
from nanovllm.server.histogram import Histogram

__all__ = ["Meter", "RequestHistograms"]


@dataclass(slots=True, kw_only=True)
class RequestHistograms:
    """Everything that is counted over all requests. Lengths in tokens, times in seconds.

    num_prompt_tokens, num_cached_tokens: of requests that have had an output. num_finished: continuations by reason.
    """

    prompt_tokens: Histogram
    generation_tokens: Histogram
    max_generation_tokens: Histogram
    params_n: Histogram
    params_max_tokens: Histogram
    first_token_s: Histogram
    inter_token_s: Histogram
    per_token_s: Histogram
    end_to_end_s: Histogram
    queue_s: Histogram
    inference_s: Histogram
    prefill_s: Histogram
    decode_s: Histogram
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_finished: dict[FinishReason, int] = field(default_factory=lambda: dict.fromkeys(FinishReason, 0))

    def all(self) -> list[Histogram]:
        values = (getattr(self, f.name) for f in fields(self))
        return [value for value in values if isinstance(value, Histogram)]


class Meter:
    """num_generation_tokens: new tokens so far, over all continuations."""

    __slots__ = ("_has_output", "_is_delta", "_last_s", "_num_prompt_tokens", "_num_tokens", "_params", "_start_s",
                 "_to", "_unfinished", "num_generation_tokens")  # fmt: skip

    def __init__(self, histograms: RequestHistograms, num_prompt_tokens: int, params: SamplingParams) -> None:
        self.num_generation_tokens = 0
        self._to = histograms
        self._num_prompt_tokens = num_prompt_tokens
        self._params = params
        self._is_delta = params.output_kind is RequestOutputKind.DELTA
        self._start_s = time.monotonic()
        self._has_output = False
        self._num_tokens = [0] * params.n
        self._last_s = [0.0] * params.n
        self._unfinished = set(range(params.n))

    def observe(self, output: RequestOutput) -> None:
        """Takes note of an output."""
        now_s = time.monotonic()
        is_whole = output.finished and not self.num_generation_tokens and output.metrics is not None
        if not self._has_output:
            self._has_output = True
            self._to.num_prompt_tokens += self._num_prompt_tokens
            self._to.num_cached_tokens += output.num_cached_tokens
        for completion in output.outputs:
            self._count_tokens(completion, now_s, is_whole=is_whole)
            if completion.finish_reason is not None and completion.index in self._unfinished:
                self._unfinished.remove(completion.index)
                self._to.num_finished[completion.finish_reason] += 1
        if output.finished and output.metrics is not None:
            if is_whole:
                self._observe_tokens(output.metrics)
            self._observe_end(output.metrics, now_s)

    def close(self, *, failed: bool) -> None:
        """Counts what has not ended by itself: as failed, or as aborted."""
        self._to.num_finished[FinishReason.ERROR if failed else FinishReason.ABORT] += len(self._unfinished)
        self._unfinished.clear()

    def _count_tokens(self, completion: CompletionOutput, now_s: float, *, is_whole: bool) -> None:
        index = completion.index
        num_before = self._num_tokens[index]
        num_new = len(completion.token_ids) - (0 if self._is_delta else num_before)
        if not num_new:
            return
        if not is_whole:
            if not self.num_generation_tokens:
                self._to.first_token_s.observe(now_s - self._start_s)
            if num_before:
                self._to.inter_token_s.observe((now_s - self._last_s[index]) / num_new, num_new)
            elif num_new > 1:
                self._to.inter_token_s.observe(0.0, num_new - 1)  # they came together
        self._num_tokens[index] += num_new
        self._last_s[index] = now_s
        self.num_generation_tokens += num_new

    def _observe_tokens(self, metrics: RequestMetrics) -> None:
        """Times of tokens that nobody saw coming."""
        if metrics.time_to_first_token_s is not None:
            self._to.first_token_s.observe(metrics.time_to_first_token_s)
        num_gaps = sum(max(0, num_tokens - 1) for num_tokens in self._num_tokens)
        self._to.inter_token_s.observe(metrics.inter_token_latency_s or 0.0, num_gaps)

    def _observe_end(self, metrics: RequestMetrics, now_s: float) -> None:
        to, n = self._to, self._params.n
        to.params_n.observe(n)
        to.max_generation_tokens.observe(max(self._num_tokens))
        to.prompt_tokens.observe(self._num_prompt_tokens, n)
        for num_tokens in self._num_tokens:
            to.generation_tokens.observe(num_tokens)
        if self._params.max_tokens is not None:
            to.params_max_tokens.observe(self._params.max_tokens, n)
        to.end_to_end_s.observe(now_s - self._start_s, n)
        to.per_token_s.observe(metrics.inter_token_latency_s or 0.0, n)
        queue_s, prefill_s, decode_s = metrics.queue_time_s, metrics.prefill_time_s, metrics.decode_time_s
        to.queue_s.observe(queue_s or 0.0, n)
        to.prefill_s.observe(prefill_s or 0.0, n)
        to.decode_s.observe(decode_s or 0.0, n)
        to.inference_s.observe((prefill_s or 0.0) + (decode_s or 0.0), n)
