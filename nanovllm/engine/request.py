"""Request: what the user asked for, joined with the sequence that computes it and the text that it has become."""

from nanovllm.engine.detokenizer import Detokenizer
from nanovllm.engine.sequence import Sequence
from nanovllm.outputs import CompletionOutput, FinishReason, RequestOutput
from nanovllm.sampling_params import RequestOutputKind

__all__ = ["Request"]


class Request:
    """One request inside the engine."""

    __slots__ = (
        "_num_seen",
        "_num_taken",
        "_prompt_token_ids",
        "detokenizer",
        "output_kind",
        "prompt",
        "request_id",
        "seq",
    )

    def __init__(self, request_id: str, prompt: str | None, seq: Sequence, detokenizer: Detokenizer) -> None:
        self.request_id = request_id
        self.prompt = prompt
        self.seq = seq
        self.detokenizer = detokenizer
        self.output_kind = seq.sampling_params.output_kind
        self._prompt_token_ids = seq.prompt_token_ids  # one list for all outputs
        self._num_seen = seq.num_tokens  # tokens that have been detokenized
        self._num_taken = seq.num_tokens  # tokens that a delta has carried

    @property
    def has_new_tokens(self) -> bool:
        """Whether the sequence has grown since it was last detokenized (recomputing adds none)."""
        return self._num_seen < self.seq.num_tokens

    def detokenize(self) -> str | None:
        """Turns the sequence's new tokens into text; returns the stop string that ended it, if any.

        The text of the token that ended the sequence is left out, unless stop strings are to be included.
        """
        seq = self.seq
        end = len(seq.token_ids)
        if seq.finish_reason is FinishReason.STOP and not seq.sampling_params.include_stop_str_in_output:
            end -= 1
        stop = None
        while self._num_seen < end and stop is None:
            stop = self.detokenizer.feed(seq.token_ids[self._num_seen])
            self._num_seen += 1
        if seq.finish_reason is not None and stop is None:
            stop = self.detokenizer.finish()
        return stop

    def output(self) -> RequestOutput | None:
        """What the user is told after this step; None where that is nothing."""
        seq = self.seq
        if self.output_kind is RequestOutputKind.FINAL_ONLY and seq.finish_reason is None:
            return None
        if self.output_kind is RequestOutputKind.DELTA:
            text, token_ids = self.detokenizer.take(), seq.token_ids[self._num_taken :].tolist()
            self._num_taken = seq.num_tokens
        else:
            text, token_ids = self.detokenizer.text, seq.output_token_ids
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt,
            prompt_token_ids=self._prompt_token_ids,
            outputs=[CompletionOutput(0, text, token_ids, seq.finish_reason, seq.stop_reason)],
            finished=seq.finish_reason is not None,
            num_cached_tokens=seq.num_cached_tokens or 0,
        )
