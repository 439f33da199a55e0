"""Request: what the user asked for, joined with the sequences that compute it and the text that they have become."""

from collections.abc import Callable
from collections.abc import Sequence as Seq

from nanovllm.batch import RowLogprobs
from nanovllm.engine.detokenizer import Detokenizer
from nanovllm.engine.sequence import Sequence
from nanovllm.errors import NanoVLLMError
from nanovllm.outputs import CompletionOutput, FinishReason, Logprob, RequestMetrics, RequestOutput, TokenLogprobs
from nanovllm.sampling_params import RequestOutputKind

__all__ = ["Completion", "Request", "read_logprobs"]


class Completion:
    """One of a request's continuations: a sequence, its text and its log-probabilities.

    detokenizer: None where the request wants no text.
    """

    __slots__ = (
        "_cumulative_logprob",
        "_logprobs",
        "_num_seen",
        "_num_taken",
        "detokenizer",
        "index",
        "request",
        "seq",
    )

    def __init__(self, request: "Request", index: int, seq: Sequence, detokenizer: Detokenizer | None) -> None:
        self.request = request
        self.index = index
        self.seq = seq
        self.detokenizer = detokenizer
        self._logprobs: list[TokenLogprobs] | None = [] if seq.num_logprobs >= 0 else None
        self._cumulative_logprob = 0.0
        self._num_seen = seq.num_tokens  # tokens that have been detokenized
        self._num_taken = seq.num_tokens  # tokens that a delta has carried

    @property
    def num_new_tokens(self) -> int:
        """Tokens of the sequence that have not been detokenized (recomputing adds none)."""
        return self.seq.num_tokens - self._num_seen

    def add_logprobs(self, entries: Seq[TokenLogprobs]) -> None:
        """Log-probabilities of the new tokens; called before `detokenize`."""
        assert self._logprobs is not None, "the request wanted no log-probabilities"
        self._logprobs.extend(entries)
        for entry in entries:
            self._cumulative_logprob += next(iter(entry.values())).logprob

    def detokenize(self) -> str | None:
        """Turns the sequence's new tokens into text; returns the stop string that ended it, if any.

        The text of the token that ended the sequence is left out, unless stop strings are to be included. The first
        `min_tokens` tokens are no part of a stop string.
        """
        seq = self.seq
        end = len(seq.token_ids)
        if self.detokenizer is None:
            self._num_seen = end
            return None
        num_text = end
        if seq.finish_reason is FinishReason.STOP and not seq.sampling_params.include_stop_str_in_output:
            num_text -= 1
        first_watched = seq.num_prompt_tokens + seq.min_tokens
        stop = None
        while self._num_seen < num_text and stop is None:
            stop = self.detokenizer.feed(seq.token_ids[self._num_seen], watched=self._num_seen >= first_watched)
            self._num_seen += 1
        if stop is not None:
            self._drop_tokens_after_stop()
        elif seq.finish_reason is not None:
            stop = self.detokenizer.finish()
            self._num_seen = end
        return stop

    def _drop_tokens_after_stop(self) -> None:
        """Several tokens may have come in one step; those after the stop string were never asked for."""
        self.seq.truncate(self._num_seen)
        if self._logprobs is not None:
            for entry in self._logprobs[self.seq.num_output_tokens :]:
                self._cumulative_logprob -= next(iter(entry.values())).logprob
            del self._logprobs[self.seq.num_output_tokens :]

    def output(self) -> CompletionOutput:
        """What the user is told of it now."""
        seq, detokenizer = self.seq, self.detokenizer
        start = seq.num_prompt_tokens
        if self.request.output_kind is RequestOutputKind.DELTA:
            start, self._num_taken = self._num_taken, seq.num_tokens
            text = detokenizer.take() if detokenizer else ""
        else:
            text = detokenizer.text if detokenizer else ""
        logprobs = self._logprobs
        return CompletionOutput(
            index=self.index,
            text=text,
            token_ids=seq.token_ids[start:].tolist(),
            finish_reason=seq.finish_reason,
            stop_reason=seq.stop_reason,
            cumulative_logprob=None if logprobs is None else self._cumulative_logprob,
            logprobs=None if logprobs is None else logprobs[start - seq.num_prompt_tokens :],
        )


class Request:
    """One request inside the engine. Times are in seconds of the engine's clock.

    changed: completions that have got tokens, or ended, since the last `output`.
    """

    __slots__ = (
        "_prompt_logprobs",
        "arrival_s",
        "changed",
        "completions",
        "error",
        "first_token_s",
        "last_token_s",
        "output_kind",
        "prompt",
        "prompt_token_ids",
        "request_id",
        "scheduled_s",
    )

    def __init__(
        self,
        request_id: str,
        prompt: str | None,
        prompt_token_ids: list[int],
        output_kind: RequestOutputKind,
        arrival_s: float,
    ) -> None:
        self.request_id = request_id
        self.prompt = prompt
        self.prompt_token_ids = prompt_token_ids
        self.output_kind = output_kind
        self.completions: list[Completion] = []
        self.changed: list[Completion] = []
        self.error: NanoVLLMError | None = None
        self.arrival_s = arrival_s
        self.scheduled_s: float | None = None
        self.first_token_s: float | None = None
        self.last_token_s: float | None = None
        self._prompt_logprobs: list[TokenLogprobs | None] = [None]

    def add_completion(self, seq: Sequence, detokenizer: Detokenizer | None) -> None:
        self.completions.append(Completion(self, len(self.completions), seq, detokenizer))

    def add_prompt_logprobs(self, entries: Seq[TokenLogprobs]) -> None:
        self._prompt_logprobs.extend(entries)

    @property
    def is_finished(self) -> bool:
        return all(completion.seq.finish_reason is not None for completion in self.completions)

    def output(self) -> RequestOutput | None:
        """What the user is told after this step; None where that is nothing."""
        changed, self.changed = self.changed, []
        finished = self.is_finished
        if self.output_kind is RequestOutputKind.FINAL_ONLY and not finished:
            return None
        if self.output_kind is RequestOutputKind.FINAL_ONLY or self.error is not None:
            changed = self.completions
        first = self.completions[0].seq
        has_prompt_logprobs = first.num_prompt_logprobs >= 0 and not first.wants_prompt_rows
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            outputs=[completion.output() for completion in changed],
            finished=finished,
            num_cached_tokens=first.num_cached_tokens or 0,
            prompt_logprobs=self._prompt_logprobs if has_prompt_logprobs else None,
            metrics=self._metrics() if finished else None,
            error=self.error,
        )

    def _metrics(self) -> RequestMetrics:
        sequences = [completion.seq for completion in self.completions]
        return RequestMetrics(
            arrival_s=self.arrival_s,
            scheduled_s=self.scheduled_s,
            first_token_s=self.first_token_s,
            last_token_s=self.last_token_s,
            num_generation_tokens=sum(seq.num_output_tokens for seq in sequences),
            num_completions=len(sequences),
            num_preemptions=sum(seq.num_preemptions for seq in sequences),
            num_draft_tokens=sum(seq.num_draft_tokens for seq in sequences),
            num_accepted_tokens=sum(seq.num_accepted_tokens for seq in sequences),
        )


def read_logprobs(row: RowLogprobs, text_of: Callable[[int], str]) -> TokenLogprobs:
    """A row as the user sees it: its own token first, then the likeliest in order."""
    ids, logprobs = row.token_ids.tolist(), row.logprobs.tolist()
    entries = {ids[0]: Logprob(logprobs[0], row.rank, text_of(ids[0]))}
    for rank, (token_id, logprob) in enumerate(zip(ids[1:], logprobs[1:], strict=True), start=1):
        if token_id != ids[0]:
            entries[token_id] = Logprob(logprob, rank, text_of(token_id))
    return entries
