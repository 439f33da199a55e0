"""PagedRunner: runs steps of an exported graph on ONNX Runtime's CPU provider, over a paged KV cache.

The pools are bound once, input and output to the same memory, so that the graph updates them in place; the step's small
arrays and the logits are bound for every run. Where the graph picks greedy tokens itself, it is asked for these in
place of their logits. Knows nothing about scheduling, and of sampling no more than which rows are greedy.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from backends.ort.kernels.library import KernelStatus
from backends.ort.kernels.sampler import CompiledSampler
from backends.ort.kv_pools import KVPool, allocate_pools, kv_bytes_per_block
from backends.ort.step_runs import StepRun, split_step, whole_step
from nanovllm.batch import Batch, StepOutput
from nanovllm.errors import BackendError
from nanovllm.model_info import ModelInfo
from nanovllm.plugins.interfaces import LogitsModelRunner
from nanovllm.sampler import plain_rows, sample_others

if TYPE_CHECKING:
    from onnxruntime import InferenceSession  # type: ignore[import-untyped, unused-ignore]

__all__ = ["PagedRunner"]

_PADDED_PAIR_COST = 5.0
"""The stock attention reads keys and values at a fifth of the speed at which weights are streamed (measured on two
cores: 12 and 62 GB/s), so a padded (query, key) pair costs as much as this many times its bytes of weights."""


class PagedRunner(LogitsModelRunner):
    """Model runner over one session.

    session: an exported graph, opened; owned by the runner from now on. model_info: what model_info.json says of it,
    with the dtype of the KV cache that it was opened with.
    kernels: whether the session runs our compiled kernels, which take a ragged step whole; the stock attention pads.
    sampler: picks the tokens in place of the core's own.
    """

    kv_cache_dtypes = frozenset({"float32", "bfloat16", "int8"})

    def __init__(
        self,
        session: "InferenceSession",
        model_info: ModelInfo,
        kernels: KernelStatus = KernelStatus(None, "the session was opened without them"),  # noqa: B008 - it is frozen
        sampler: CompiledSampler | None = None,
    ) -> None:
        self.model_info = model_info
        self.kernels = kernels
        self._sampler = sampler
        self.preferred_block_size = model_info.kv_cache.block_size
        self._session: InferenceSession | None = session
        self._binding: Any = None
        self._pools: list[KVPool] | None = None  # bound by address: replaced only together with the binding
        self._block_size = 0
        self._logits = np.empty((0, model_info.vocab_size), np.float32)
        self._spare = self._logits
        self._picks_greedy = any(tensor.name == "greedy_ids" for tensor in model_info.outputs)
        weight_bytes = sum(weights.num_bytes for weights in model_info.weights)
        pair_bytes = model_info.num_layers * 2 * model_info.num_kv_heads * model_info.head_dim * 4  # read as float
        self._run_cost = weight_bytes / (pair_bytes * _PADDED_PAIR_COST)

    def kv_bytes_per_block(self, block_size: int) -> int:
        return kv_bytes_per_block(self.model_info, block_size)

    def allocate_kv_cache(self, num_blocks: int, block_size: int) -> None:
        """Allocates and touches the pools, so that no step pays for page faults; earlier pools are dropped."""
        session = self._open_session()
        self._binding, self._pools = None, None
        pools = allocate_pools(self.model_info, num_blocks, block_size)
        binding = session.io_binding()
        for pool in pools:
            _bind(binding.bind_input, pool.input, pool.array, pool.element_type)
            _bind(binding.bind_output, pool.output, pool.array, pool.element_type)
        self._binding, self._pools, self._block_size = binding, pools, block_size

    def forward(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Logits, float32 (num_logits, vocab_size), in memory that the next call reuses. Raises `BackendError`."""
        return self._step(batch, np.zeros(batch.num_logits, np.bool_))[0]

    def execute(self, batch: Batch) -> StepOutput:
        sampling = batch.sampling
        is_greedy = plain_rows(sampling) & ~(sampling.rows["temperature"] > 0)
        if not self._picks_greedy or not is_greedy.any():
            return super().execute(batch)
        logits, token_ids = self._step(batch, is_greedy)
        return sample_others(token_ids, is_greedy, logits, sampling, batch.logits_start, self.draw)

    def draw(
        self, logits: npt.NDArray[np.float32], rows: npt.NDArray[np.void], uniforms: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.int64]:
        if self._sampler is None:
            return super().draw(logits, rows, uniforms)
        return self._sampler.draw(logits, rows, uniforms)

    def close(self) -> None:
        self._binding, self._pools, self._session = None, None, None
        self._logits = self._spare = np.empty((0, self.model_info.vocab_size), np.float32)

    def _step(
        self, batch: Batch, is_greedy: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The logits of the rows that are not greedy, as `forward` gives them, and the tokens of those that are, int64
        (num_logits,), 0 for the others."""
        if self._pools is None:
            self._open_session()
            raise BackendError("the KV cache is not allocated: call allocate_kv_cache first.")
        num_logits = int(np.count_nonzero(~is_greedy))
        self._logits = _at_least(self._logits, num_logits)
        logits, token_ids = self._logits[:num_logits], np.zeros(batch.num_logits, np.int64)
        for run in self._runs(batch, is_greedy):
            token_ids[run.greedy_rows] = self._run(run, logits)
        return logits, token_ids

    def _runs(self, batch: Batch, is_greedy: npt.NDArray[np.bool_]) -> list[StepRun]:
        if self.kernels.library is None:
            return split_step(batch, self._block_size, self._run_cost, is_greedy)
        return whole_step(batch, self._block_size, is_greedy)

    def _run(self, run: StepRun, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Runs the graph and puts the run's rows where they belong, directly where they stand together; returns the
        tokens of its greedy rows."""
        num_rows = len(run.rows)
        together = num_rows == 0 or run.rows[-1] - run.rows[0] == num_rows - 1
        if together:
            first = int(run.rows[0]) if num_rows else 0
            target = logits[first : first + num_rows]
        else:
            self._spare = _at_least(self._spare, num_rows)
            target = self._spare[:num_rows]
        token_ids = np.empty(len(run.greedy_rows), np.int64)
        for name, array in run.inputs.items():
            if name != "greedy_indices" or self._picks_greedy:
                _bind(self._binding.bind_input, name, array)
        _bind(self._binding.bind_output, "logits", target)
        if self._picks_greedy:
            _bind(self._binding.bind_output, "greedy_ids", token_ids)
        try:
            self._open_session().run_with_iobinding(self._binding)
        except Exception as error:  # its exceptions share no base class
            raise BackendError(
                f"ONNX Runtime failed in a step of {len(run.inputs['token_ids'])} tokens: {error}"
            ) from error
        if not together:
            logits[run.rows] = target
        return token_ids

    def _open_session(self) -> "InferenceSession":
        if self._session is None:
            raise BackendError("the runner is closed; build a new one.")
        return self._session


def _bind(bind: Any, name: str, array: npt.NDArray[Any], element_type: int | None = None) -> None:
    """Binds C-contiguous memory by its address; the caller keeps the array alive until the run is over.

    element_type: what the memory holds, as ONNX numbers it, where the array's dtype does not say it.
    """
    bind(name, "cpu", 0, element_type or array.dtype.type, array.shape, array.ctypes.data)


def _at_least(buffer: npt.NDArray[np.float32], num_rows: int) -> npt.NDArray[np.float32]:
    """`buffer` where it has num_rows rows, else a new one of at least twice its size."""
    if len(buffer) >= num_rows:
        return buffer
    return np.empty((max(num_rows, 2 * len(buffer)), buffer.shape[1]), np.float32)
