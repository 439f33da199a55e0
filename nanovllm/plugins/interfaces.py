"""What a backend author implements: `ModelRunner` (or `LogitsModelRunner`) and `Tokenizer`.

The engine calls these and nothing else. One engine calls its runner from one thread, one step at a time.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from nanovllm.batch import Batch, StepOutput
from nanovllm.model_info import ModelInfo
from nanovllm.sampler import draw, sample

__all__ = ["KVMode", "LogitsModelRunner", "ModelRunner", "PendingStep", "Tokenizer"]

KVMode = Literal["paged", "per_sequence", "unshared"]
"""paged: a pool of blocks. per_sequence: dense state per sequence, seen as one block of max_model_len tokens each.
unshared: dense state per sequence that grows with it, kept by seq_id; blocks count its memory, so that sequences wait
or are preempted where it runs out, but no block is shared and the runner does not read `block_tables`."""


class PendingStep(Protocol):
    """A step that has been submitted. `result()` waits for it, raises what went wrong in it, and is called once at
    most; results are asked for in the order of submission."""

    def result(self) -> StepOutput: ...


@dataclass(frozen=True, slots=True)
class _Done:
    output: StepOutput

    def result(self) -> StepOutput:
        return self.output


class ModelRunner(ABC):
    """Owns the weights, the memory of the KV cache and the arithmetic of one model.

    Life: the factory builds it; the engine asks for the KV geometry, calls `allocate_kv_cache` once, then `submit`
    or `execute` for every step, then `close`.
    """

    model_info: ModelInfo
    preferred_block_size: int = 32  # tokens
    honours: frozenset[str] = frozenset()
    """Which optional parts of the step contract it honours; a request that needs another one is refused.

    edits: `SamplingBatch.edits`. logprobs: `SamplingBatch.num_logprobs`. prompt_logprobs: `SamplingBatch.targets`.
    drafts: several sampled rows of one sequence in a step.
    """
    overlaps: bool = False
    """Whether a step may be submitted before the result of the one before has been asked for; see `submit`."""
    kv_cache_dtypes: frozenset[str] = frozenset()
    """The values of `EngineConfig.kv_cache_dtype`, beside "auto", that its factory honours; any other is refused."""
    kv: KVMode | None = None
    """How it keeps the KV cache, where that is not what its plugin's record says: a plugin may have several runners."""

    @abstractmethod
    def kv_bytes_per_block(self, block_size: int) -> int:
        """Bytes of KV cache, over all layers, that one block of `block_size` tokens takes. 0: no memory here."""

    def kv_memory_bytes(self) -> int | None:
        """Bytes that the KV cache may take in the memory that this runner keeps it in. None: the machine's memory, of
        which the engine takes a share. Asked before `allocate_kv_cache`, where the user sets no size; may run steps of
        the largest size to find out."""
        return None

    @abstractmethod
    def allocate_kv_cache(self, num_blocks: int, block_size: int) -> None:
        """Allocates the pools. Block ids in later batches are 0 .. num_blocks - 1. Raises `KVCacheError`."""

    @abstractmethod
    def execute(self, batch: Batch) -> StepOutput:
        """Runs one step: writes the keys and values of every token of `batch` at its slot and samples the wanted rows.

        `batch` is read only and not valid after the return. Raises `BackendError`.
        """

    def submit(self, batch: Batch) -> PendingStep:
        """Starts a step. A runner that can overlap host and device work overrides this; by default it waits.

        One that declares `overlaps` keeps the following promises; the engine then has two steps in flight at most, and
        only with `kv` = paged.

        - Steps take effect in the order in which they were submitted: blocks, too, pass from one sequence to another
          in that order.
        - A token LAST_SAMPLED (-1) is the one that the step submitted just before this one samples for that sequence;
          `last_sampled_rows` says which row that is.
        - Every sampled row gets one token, no more.
        - A step whose predecessor failed is never used: what it computes, or raises, is of no matter, as long as its
          result comes; its tokens come again, at the same slots, and so do its releases. The rows of sequences that
          turn out to have ended are never used either.
        """
        return _Done(self.execute(batch))

    def close(self) -> None:  # noqa: B027  (a runner without resources need not override it)
        """Frees what the runner holds. May be called more than once; nothing else is called after it."""


class LogitsModelRunner(ModelRunner):
    """A runner that yields plain logits; the core's sampler picks the tokens and honours the whole contract."""

    honours = frozenset({"edits", "logprobs", "prompt_logprobs", "drafts"})

    @abstractmethod
    def forward(self, batch: Batch) -> npt.NDArray[np.float32]:
        """As `execute`, but returns the logits of the wanted rows, float32 (num_logits, vocab_size).

        The array stays the runner's and may be overwritten by the next call.
        """

    def draw(
        self, logits: npt.NDArray[np.float32], rows: npt.NDArray[np.void], uniforms: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.int64]:
        """`nanovllm.sampler.draw`; a runner that has it compiled overrides this. Rows are not always those of the step,
        nor as wide: edited ones come apart, and without the tokens that cannot come."""
        return draw(logits, rows, uniforms)

    def execute(self, batch: Batch) -> StepOutput:
        return sample(self.forward(batch), batch.sampling, batch.logits_start, self.draw)


class Tokenizer(ABC):
    """Turns text into token ids and back. Stateless: safe to call from several threads."""

    vocab_size: int
    """Ids are 0 .. vocab_size - 1; a model's logits may be wider (padded)."""

    special_token_ids: frozenset[int]
    """Ids that `decode` leaves out when `skip_special_tokens` is set."""

    @abstractmethod
    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Special tokens written out in `text` are recognised (as vLLM and HF do)."""

    @abstractmethod
    def decode(self, token_ids: Seq[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`. Bytes that are no UTF-8 become U+FFFD."""

    def token_bytes(self) -> Seq[bytes] | None:
        """The bytes of every token id, where text is exactly their concatenation decoded as UTF-8 (byte-level BPE).

        None where it is not (a decoder that strips or joins by context); detokenizing is then slower.
        """
        return None

    def inner_token_bytes(self) -> Seq[bytes] | None:
        """The bytes that every token id adds to a text that has already begun; structured output is matched on them.

        Known for more tokenizers than `token_bytes`: sentencepiece's drop a leading space, but only of the whole text.
        Special tokens are given as they are written out. None where a token's text depends on its neighbours.
        """
        return self.token_bytes()
