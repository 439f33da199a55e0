"""MockRunner: a runner without a model. The next token is a hash of every token before it.

Its "KV cache" stores, at each slot, the token and the position that were written there. To answer, it reads the whole
context back through the block table, so an engine that mixes up blocks, slots, positions or lengths gets other tokens
than `next_token` predicts, or a `BackendError` that says what was wrong.
"""

import json
from collections.abc import Sequence as Seq
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nanovllm.config import EngineConfig
from nanovllm.errors import BackendError, ConfigError
from nanovllm.plugins import Batch, LogitsModelRunner, ModelInfo, ModelSource, StepOutput

__all__ = ["MockRunner", "next_token"]

DEFAULT_VOCAB_SIZE = 512
EMPTY = -1  # position of a slot that was never written

_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that no token is lost modulo 2**64
_MASK = 2**64 - 1


def next_token(token_ids: Seq[int], vocab_size: int) -> int:
    """What the mock continues `token_ids` with, greedily: a polynomial hash of all of them."""
    state = 0
    for token_id in token_ids:
        state = (state * _MULTIPLIER + token_id + 1) & _MASK
    return _target(state, vocab_size)


def _target(state: int, vocab_size: int) -> int:
    return ((state ^ (state >> 31)) * _MULTIPLIER & _MASK) % vocab_size


class MockRunner(LogitsModelRunner):
    """Options (`backend_options`): vocab_size; check (default True: read back and check the whole context, else trust
    the engine and hash only the last token and its position, which costs the same for any context length); overlap
    (default False: compute each step when it is submitted, else as `backends.mock.late_runner` says)."""

    def __init__(
        self,
        *,
        vocab_size: int = DEFAULT_VOCAB_SIZE,
        max_model_len: int = 4096,
        eos_token_id: int = 0,
        check: bool = True,
    ) -> None:
        self.model_info = ModelInfo(
            model_name="mock",
            model_type="mock",
            vocab_size=vocab_size,
            eos_token_ids=(eos_token_id,),
            hidden_size=1,
            num_layers=1,
            num_heads=1,
            num_kv_heads=1,
            head_dim=1,
            max_model_len=max_model_len,
        )
        self._check = check
        self._block_size = 0
        self._tokens = np.zeros(0, np.int64)  # (num_slots,)
        self._positions = np.zeros(0, np.int64)  # (num_slots,)

    @classmethod
    def from_config(cls, source: ModelSource, config: EngineConfig) -> "MockRunner":
        """A runner as `backend_options` say, without the option overlap, which chooses the class."""
        options = {name: value for name, value in config.backend_options.items() if name != "overlap"}
        check = options.pop("check", True)
        vocab_size = options.pop("vocab_size", None) or _vocab_size_of(source.folder) or DEFAULT_VOCAB_SIZE
        if options:
            raise ConfigError(
                f"the mock backend has no option {next(iter(options))!r}; it has overlap, vocab_size and check."
            )
        if not isinstance(vocab_size, int) or vocab_size < 2:
            raise ConfigError(f"vocab_size is {vocab_size!r}; it must be an integer of at least 2.")
        return cls(vocab_size=vocab_size, check=bool(check))

    def kv_bytes_per_block(self, block_size: int) -> int:
        return 16 * block_size

    def allocate_kv_cache(self, num_blocks: int, block_size: int) -> None:
        self._block_size = block_size
        self._tokens = np.zeros(num_blocks * block_size, np.int64)
        self._positions = np.full(num_blocks * block_size, EMPTY, np.int64)

    def execute(self, batch: Batch) -> StepOutput:
        sampling = batch.sampling
        is_plain = not sampling.edits and sampling.num_logprobs is None and sampling.targets is None
        if self._check or not is_plain or sampling.rows["temperature"].any():
            return super().execute(batch)
        self._write(batch)  # greedy and unchecked: no logits are needed
        last = batch.logits_indices
        targets = [
            _target(state, self.model_info.vocab_size)
            for state in (batch.token_ids[last] * 1_000_003 + batch.positions[last]).tolist()
        ]
        return StepOutput([targets[a:b] for a, b in pairwise(batch.logits_start.tolist())])

    def forward(self, batch: Batch) -> npt.NDArray[np.float32]:
        self._write(batch)
        vocab_size = self.model_info.vocab_size
        logits = np.empty((batch.num_logits, vocab_size), np.float32)
        row = 0
        for i in range(batch.num_seqs):
            for index in batch.logits_indices[batch.logits_start[i] : batch.logits_start[i + 1]]:
                context = self._read(batch, i, int(batch.positions[index]) + 1)
                target = next_token(context, vocab_size)
                logits[row] = np.random.default_rng(target).random(vocab_size, np.float32) * 4
                logits[row, target] = 6
                row += 1
        return logits

    def _write(self, batch: Batch) -> None:
        slots = batch.slot_mapping
        if len(np.unique(slots)) != len(slots):
            raise BackendError("two tokens of one step are written to the same slot")
        self._tokens[slots] = batch.token_ids
        self._positions[slots] = batch.positions

    def _read(self, batch: Batch, seq_index: int, num_tokens: int) -> list[int]:
        """The tokens of a sequence, through its block table."""
        num_blocks = -(-num_tokens // self._block_size)
        blocks = batch.block_tables[seq_index, :num_blocks].astype(np.int64)
        slots = (blocks[:, None] * self._block_size + np.arange(self._block_size)).reshape(-1)[:num_tokens]
        if not np.array_equal(self._positions[slots], np.arange(num_tokens)):
            raise BackendError(f"sequence {batch.seq_ids[seq_index]}: the cache does not hold positions 0, 1, 2 ...")
        tokens: list[int] = self._tokens[slots].tolist()
        return tokens


def _vocab_size_of(folder: Path | None) -> int | None:
    """The vocabulary of a model folder, so that the mock can stand in for its model."""
    for name in ("model_info.json", "config.json") if folder else ():
        try:
            return int(json.loads((folder / name).read_text(encoding="utf-8"))["vocab_size"])  # type: ignore[operator]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None
