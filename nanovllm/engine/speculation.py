"""Speculation by prompt lookup: what followed the last few tokens where they stood before is likely to follow again.

In: running sequences. Out: their `draft_token_ids`, which the scheduler computes beside the last token and verifies by
what is sampled there; so the output is the same with and without them, only sooner. (Saxena 2023, "Prompt Lookup
Decoding"; vLLM's method "ngram".) Worth it where a step costs little more for a few tokens than for one, hence only
while few sequences run, and where guesses come true, hence not for sequences whose guesses failed lately.
"""

from array import array
from collections.abc import Sequence as Seq

from nanovllm.config import SpeculativeConfig
from nanovllm.engine.sequence import NO_TOKENS, Sequence

__all__ = ["NgramIndex", "NgramProposer"]


class NgramIndex:
    """Where each n-gram of one growing sequence stood last. Indexing a token and looking up cost O(1)."""

    def __init__(self, longest: int, shortest: int) -> None:
        self._sizes = range(longest, shortest - 1, -1)
        self._ends: list[dict[bytes, int]] = [{} for _ in self._sizes]  # n-gram -> index of the token after it
        self._num_indexed = 0

    def extend(self, token_ids: "array[int]") -> None:
        """Takes in what `token_ids` has grown by since the last call. The n-gram at the very end is not entered: it is
        the one that will be looked up."""
        for end in range(max(self._num_indexed, 1), len(token_ids)):
            for size, ends in zip(self._sizes, self._ends, strict=True):
                if end >= size:
                    ends[token_ids[end - size : end].tobytes()] = end
        self._num_indexed = len(token_ids)

    def continuation(self, token_ids: "array[int]", count: int) -> "array[int]":
        """`count` tokens that followed where the longest known end of `token_ids` stood last; empty where none did.

        Where that is less than `count` tokens ago the continuation runs into itself, as a repetition does.
        """
        for size, ends in zip(self._sizes, self._ends, strict=True):
            start = ends.get(token_ids[-size:].tobytes()) if len(token_ids) > size else None
            if start is not None:
                period = token_ids[start:]
                repeats = -(-count // len(period))
                return (period * repeats)[:count]
        return NO_TOKENS


class _History:
    """What one sequence's guesses have been worth lately. rate: share of its drafts that came true, decaying."""

    __slots__ = ("index", "num_accepted", "num_drafted", "rate", "resume_at")

    def __init__(self, index: NgramIndex) -> None:
        self.index = index
        self.rate = 1.0
        self.num_drafted = self.num_accepted = 0
        self.resume_at = 0  # number of tokens of the sequence


class NgramProposer:
    """Proposes drafts for sequences in decode."""

    _MEMORY = 0.8  # weight of the past in `rate`
    _PAUSE = 32  # tokens without drafts after a bad run

    def __init__(self, config: SpeculativeConfig) -> None:
        self._config = config
        self._histories: dict[int, _History] = {}  # by sequence id

    def propose(self, running: Seq[Sequence]) -> None:
        """Sets the drafts of the running sequences that have one token to compute."""
        if len(running) > self._config.max_num_seqs:
            self._histories.clear()  # too busy: an index is made anew when it is quiet again
            return
        known, self._histories = self._histories, {}
        for seq in running:
            if seq.num_tokens - seq.num_computed_tokens == 1:
                history = known.get(seq.seq_id) or self._start(seq)
                self._histories[seq.seq_id] = history
                seq.draft_token_ids = self._drafts(seq, history)

    def _start(self, seq: Sequence) -> _History:
        history = _History(NgramIndex(self._config.prompt_lookup_max, self._config.prompt_lookup_min))
        history.num_drafted, history.num_accepted = seq.num_draft_tokens, seq.num_accepted_tokens
        return history

    def _drafts(self, seq: Sequence, history: _History) -> "array[int]":
        history.index.extend(seq.token_ids)
        self._judge(seq, history)
        if seq.num_tokens < history.resume_at:
            return NO_TOKENS
        return history.index.continuation(seq.token_ids, self._config.num_speculative_tokens)

    def _judge(self, seq: Sequence, history: _History) -> None:
        """Takes in how the last drafts did; pauses the sequence where too few come true."""
        num_drafted = seq.num_draft_tokens - history.num_drafted
        if num_drafted == 0:
            return
        share = (seq.num_accepted_tokens - history.num_accepted) / num_drafted
        history.num_drafted, history.num_accepted = seq.num_draft_tokens, seq.num_accepted_tokens
        history.rate = self._MEMORY * history.rate + (1 - self._MEMORY) * share
        if history.rate < self._config.min_acceptance_rate:
            history.rate = 1.0
            history.resume_at = seq.num_tokens + self._PAUSE
