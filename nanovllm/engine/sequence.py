"""Sequence: one prompt and its continuation, with everything that the scheduler and the block manager know of it.

Knows nothing about text, tensors or other sequences. Two numbers drive it: `num_tokens` (what it has) and
`num_computed_tokens` (what lies in the KV cache); the scheduler's only aim is to make the second catch up.
"""

from array import array
from collections.abc import Sequence as Seq
from enum import Enum, auto

import numpy as np

from nanovllm.batch import SAMPLING_ROW
from nanovllm.engine.logits_edits import SequenceEdits, needs_edits
from nanovllm.outputs import FinishReason
from nanovllm.sampling_params import SamplingParams

__all__ = ["NO_TOKENS", "Sequence", "SequenceStatus"]

NO_TOKENS = array("q")


class SequenceStatus(Enum):
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


class Sequence:
    """One sequence. Its owner is the engine; only the scheduler and the block manager change it.

    token_ids: array("q"), prompt then output; inside `looking_ahead` the last one may be unknown.
    draft_token_ids: array("q"), guesses at what follows, to be computed and verified together with the last token in
    the next step; empty in any other state than decode.
    block_table: array("i"), the block of tokens i * block_size onwards. block_hashes: chained hashes of its first full
    blocks, as far as they have been needed. cached_serials: identities of its leading blocks in the prefix cache (both
    are the block manager's).
    sampling_row: the bytes of one SAMPLING_ROW. edits: what happens to its logits, None = nothing. is_plain: it wants
    neither edits nor log-probabilities.
    max_tokens: length limit of the output, in tokens. urgency: the scheduler's sort key, set when it arrives.
    num_logprobs: likeliest tokens wanted beside each sampled one, num_prompt_logprobs: beside each of the prompt's; -1
    = no log-probabilities at all. prompt_rows_done: tokens of the prompt, from its start, whose successor's
    log-probability has been computed, or is not wanted.
    """

    __slots__ = (
        "adapter_id",
        "block_hashes",
        "block_table",
        "cache_salt",
        "cached_serials",
        "draft_token_ids",
        "edits",
        "finish_reason",
        "is_plain",
        "max_tokens",
        "min_tokens",
        "num_accepted_tokens",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_draft_tokens",
        "num_logprobs",
        "num_preemptions",
        "num_prompt_logprobs",
        "num_prompt_tokens",
        "priority",
        "prompt_rows_done",
        "sampling_params",
        "sampling_row",
        "seq_id",
        "status",
        "stop_reason",
        "stop_token_ids",
        "token_ids",
        "urgency",
    )

    def __init__(
        self,
        seq_id: int,
        prompt_token_ids: Seq[int],
        sampling_params: SamplingParams,
        *,
        max_tokens: int,
        seed: int = 0,
        eos_token_ids: Seq[int] = (),
        priority: int = 0,
        adapter_id: int = 0,
        cache_salt: str = "",
        edits: SequenceEdits | None = None,
        num_logprobs: int = -1,
        num_prompt_logprobs: int = -1,
    ) -> None:
        self.seq_id = seq_id
        self.token_ids = array("q", prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.draft_token_ids = NO_TOKENS
        self.sampling_params = sampling_params
        self.max_tokens = max_tokens
        self.min_tokens = sampling_params.min_tokens
        self.priority = priority
        self.adapter_id = adapter_id
        self.cache_salt = cache_salt
        self.urgency: tuple[int, ...] = ()
        eos = () if sampling_params.ignore_eos else eos_token_ids
        self.stop_token_ids = frozenset(eos) | frozenset(sampling_params.stop_token_ids or ())
        self.sampling_row = _sampling_row(sampling_params, seed)
        self.edits = edits
        self.num_logprobs = num_logprobs
        self.num_prompt_logprobs = num_prompt_logprobs
        self.is_plain = not needs_edits(sampling_params) and max(num_logprobs, num_prompt_logprobs) < 0
        self.prompt_rows_done = 0 if num_prompt_logprobs >= 0 else self.num_prompt_tokens - 1
        self.status = SequenceStatus.WAITING
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self.num_computed_tokens = 0
        self.num_cached_tokens: int | None = None  # found in the prefix cache when first scheduled
        self.num_preemptions = self.num_draft_tokens = self.num_accepted_tokens = 0
        self.block_table = array("i")
        self.block_hashes: list[bytes] = []
        self.cached_serials: list[int] = []

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def prompt_token_ids(self) -> list[int]:
        return self.token_ids[: self.num_prompt_tokens].tolist()

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :].tolist()

    @property
    def wants_prompt_rows(self) -> bool:
        """Whether log-probabilities of the prompt are still to be computed."""
        return self.prompt_rows_done < self.num_prompt_tokens - 1

    @property
    def num_reusable_tokens(self) -> int:
        """Leading tokens that may come from the prefix cache: not the last one, nor those whose logits are wanted."""
        return self.prompt_rows_done if self.wants_prompt_rows else len(self.token_ids) - 1

    def num_wanted_rows(self, num_new_tokens: int) -> int:
        """Rows of logits that are wanted of the next `num_new_tokens` tokens: always those of the last ones."""
        end = self.num_computed_tokens + num_new_tokens
        if self.wants_prompt_rows:
            return max(0, end - max(self.num_computed_tokens, self.prompt_rows_done))
        return int(end == len(self.token_ids))

    def append(self, token_id: int) -> None:
        """Adds a sampled token."""
        self.token_ids.append(token_id)
        if self.edits is not None:
            self.edits.append(token_id)

    def truncate(self, num_tokens: int) -> None:
        """Drops the tokens after the first `num_tokens`, which were never asked for; the sequence ends with that."""
        del self.token_ids[num_tokens:]

    def __repr__(self) -> str:
        return f"Sequence({self.seq_id}, {self.status.name}, {self.num_computed_tokens}/{self.num_tokens} tokens)"


_MAX_TEMPERATURE = float(np.finfo(np.float32).max)  # what the row can hold; as good as uniform


def _sampling_row(params: SamplingParams, seed: int) -> bytes:
    row = np.zeros(1, SAMPLING_ROW)
    row[0] = (min(params.temperature, _MAX_TEMPERATURE), max(params.top_k, 0), params.top_p, params.min_p, seed % 2**64)
    return row.tobytes()
