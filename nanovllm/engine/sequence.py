"""Sequence: one prompt and its continuation, with everything that the scheduler and the block manager know of it.

Knows nothing about text, tensors or other sequences. Two numbers drive it: `num_tokens` (what it has) and
`num_computed_tokens` (what lies in the KV cache); the scheduler's only aim is to make the second catch up.
"""

from array import array
from collections.abc import Sequence as Seq
from enum import Enum, auto

import numpy as np

from nanovllm.batch import SAMPLING_ROW
from nanovllm.outputs import FinishReason
from nanovllm.sampling_params import SamplingParams

__all__ = ["Sequence", "SequenceStatus"]


class SequenceStatus(Enum):
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


class Sequence:
    """One sequence. Its owner is the engine; only the scheduler and the block manager change it.

    token_ids: array("q"), prompt then output. block_table: array("i"), the block of tokens i * block_size onwards.
    block_hashes: chained hashes of its first full blocks, as far as they have been needed. cached_serials: identities
    of its leading blocks in the prefix cache (both are the block manager's).
    sampling_row: the bytes of one SAMPLING_ROW. max_tokens: length limit of the output, in tokens.
    """

    __slots__ = (
        "adapter_id",
        "arrival",
        "block_hashes",
        "block_table",
        "cache_salt",
        "cached_serials",
        "finish_reason",
        "max_tokens",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_prompt_tokens",
        "priority",
        "sampling_params",
        "sampling_row",
        "seq_id",
        "status",
        "stop_reason",
        "stop_token_ids",
        "token_ids",
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
    ) -> None:
        self.seq_id = seq_id
        self.token_ids = array("q", prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.sampling_params = sampling_params
        self.max_tokens = max_tokens
        self.priority = priority
        self.adapter_id = adapter_id
        self.cache_salt = cache_salt
        self.arrival = 0  # set by the scheduler: order of submission
        eos = () if sampling_params.ignore_eos else eos_token_ids
        self.stop_token_ids = frozenset(eos) | frozenset(sampling_params.stop_token_ids or ())
        self.sampling_row = _sampling_row(sampling_params, seed)
        self.status = SequenceStatus.WAITING
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self.num_computed_tokens = 0
        self.num_cached_tokens: int | None = None  # found in the prefix cache when first scheduled
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

    def __repr__(self) -> str:
        return f"Sequence({self.seq_id}, {self.status.name}, {self.num_computed_tokens}/{self.num_tokens} tokens)"


_MAX_TEMPERATURE = float(np.finfo(np.float32).max)  # what the row can hold; as good as uniform


def _sampling_row(params: SamplingParams, seed: int) -> bytes:
    row = np.zeros(1, SAMPLING_ROW)
    row[0] = (min(params.temperature, _MAX_TEMPERATURE), max(params.top_k, 0), params.top_p, params.min_p, seed % 2**64)
    return row.tobytes()
