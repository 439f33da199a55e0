"""The smallest backend that runs: it continues every prompt with the prompt itself, over and over.

Everything a real backend needs is here: a record that says what it is, a factory, a KV cache, and one method.
"""

import numpy as np

from nanovllm.config import EngineConfig
from nanovllm.plugins import (
    Batch,
    LogitsModelRunner,
    ModelInfo,
    ModelRunnerPlugin,
    ModelSource,
    Verdict,
    hookimpl,
)


class EchoRunner(LogitsModelRunner):
    """Its KV cache holds one number per token: the token's id."""

    def __init__(self) -> None:
        self.model_info = ModelInfo(
            model_name="echo",
            model_type="echo",
            vocab_size=512,
            eos_token_ids=(0,),
            hidden_size=1,
            num_layers=1,
            num_heads=1,
            num_kv_heads=1,
            head_dim=1,
            max_model_len=1024,
        )

    def kv_bytes_per_block(self, block_size: int) -> int:
        return 8 * block_size

    def allocate_kv_cache(self, num_blocks: int, block_size: int) -> None:
        self._block_size = block_size
        self._pool = np.zeros(num_blocks * block_size, np.int64)

    def forward(self, batch: Batch) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        self._pool[batch.slot_mapping] = batch.token_ids  # every new token goes where the engine says
        logits = np.zeros((batch.num_logits, self.model_info.vocab_size), np.float32)
        for i in range(batch.num_seqs):
            for row in range(batch.logits_start[i], batch.logits_start[i + 1]):
                position = batch.positions[batch.logits_indices[row]]
                tokens = self._context(batch, i, position + 1)
                logits[row, tokens[self._period(tokens)]] = 1.0
        return logits

    def _context(self, batch: Batch, seq_index: int, num_tokens: int) -> list[int]:
        """A sequence's tokens, read back through its block table."""
        positions = np.arange(num_tokens)
        blocks = batch.block_tables[seq_index, positions // self._block_size]
        tokens: list[int] = self._pool[blocks * self._block_size + positions % self._block_size].tolist()
        return tokens

    @staticmethod
    def _period(tokens: list[int]) -> int:
        """Where the next token was last said: the text repeats itself from its first repetition of a beginning."""
        n = len(tokens)
        period = next((p for p in range(1, n) if tokens[p:] == tokens[: n - p]), n)
        return n % period


def _make(source: ModelSource, config: EngineConfig) -> EchoRunner:
    return EchoRunner()


@hookimpl
def nanovllm_model_runners() -> list[ModelRunnerPlugin]:
    return [
        ModelRunnerPlugin(
            name="echo",
            factory=_make,
            can_load=lambda source: Verdict(False, "it is used only where it is named"),
            needs_folder=False,
            tokenizer="simple-bpe",
        )
    ]
