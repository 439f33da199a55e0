"""DenseRunner: runs steps on a decoder that another tool exported, with dense keys and values for each sequence.

The engine counts memory in blocks, but no block is a place here: a sequence is known by its seq_id and its cache grows
with it, so a model of 32,768 tokens starts at once and small requests take little memory. One step is one run for the
decodes (more where their lengths differ much) and one run for each chunk of a prompt: GroupQueryAttention takes a chunk
that has a past for one sequence at a time. Knows nothing about scheduling and sampling.
"""

import numpy as np
import numpy.typing as npt

from backends.ort.dense_cache import DenseCache
from backends.ort.dense_concat import ConcatCache
from backends.ort.dense_graph import DenseGraph
from backends.ort.dense_pieces import split_step
from backends.ort.dense_shared import SharedCache
from nanovllm.batch import Batch
from nanovllm.errors import BackendError
from nanovllm.model_info import ModelInfo
from nanovllm.plugins.interfaces import KVMode, LogitsModelRunner

__all__ = ["DenseRunner"]


class DenseRunner(LogitsModelRunner):
    """Model runner over one graph.

    graph: owned by the runner from now on. model_info: what graph and configs say. max_logits_bytes: most such graphs
    give logits for every token, wanted or not, 311 MB for 512 tokens of Qwen2; chunks that would give more are cut.
    """

    kv: KVMode = "unshared"
    preferred_block_size = 128

    def __init__(self, graph: DenseGraph, model_info: ModelInfo, *, max_logits_bytes: int = 2**27) -> None:
        self.model_info = model_info
        self._graph = graph
        self._cache: DenseCache | None = None
        self._logits = np.empty((0, graph.vocab_size), np.float32)
        longest = max_logits_bytes // (graph.vocab_size * graph.logits_itemsize)
        self._max_tokens = model_info.max_model_len if graph.last_row_only else max(1, longest)

    def kv_bytes_per_block(self, block_size: int) -> int:
        """What a block may cost with all that is held beside its tokens: room to grow, or the copy a run makes."""
        kind = SharedCache if self._graph.shares_buffer else ConcatCache
        return kind.memory_factor * block_size * self._graph.kv_bytes_per_token

    def allocate_kv_cache(self, num_blocks: int, block_size: int) -> None:
        """Notes how much there may be; memory is taken when sequences need it. What was held is forgotten."""
        if self._graph.shares_buffer:
            self._cache = SharedCache(
                self._graph,
                num_tokens=num_blocks * block_size,
                block_size=block_size,
                max_model_len=self.model_info.max_model_len,
            )
        else:
            self._cache = ConcatCache(self._graph)

    def forward(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Logits, float32 (num_logits, vocab_size), in memory that the next call reuses. Raises `BackendError`."""
        if self._cache is None:
            raise BackendError("the KV cache is not allocated, or the runner is closed: call allocate_kv_cache first.")
        for seq_id in batch.released_seq_ids:
            self._cache.release(seq_id)
        if len(self._logits) < batch.num_logits:
            self._logits = np.empty((batch.num_logits, self.model_info.vocab_size), np.float32)
        logits = self._logits[: batch.num_logits]
        singles, chunks = split_step(batch, max_tokens=self._max_tokens, last_row_only=self._graph.last_row_only)
        if singles:
            self._cache.run(singles, logits)
        for piece in chunks:
            self._cache.run([piece], logits)
        return logits

    def close(self) -> None:
        if self._cache is not None:
            self._cache.clear()
        self._cache = None
        self._graph.close()
