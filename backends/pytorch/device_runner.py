"""DeviceRunner: steps that the host prepares and a device runs, tokens included, without either waiting for the other.

In: a `Batch`. Out: a `PendingStep`. One copy takes the step to the device (`step_tensors`); the body of the program
runs there, as a graph where every sequence has one token (`decode_graphs`); plain rows are sampled there
(`device_sampler`), and their tokens kept, so that the next step can be submitted before anybody has read them. Rows
with edits or log-probabilities are sampled on the host, by the core's sampler. Where a model is divided among devices,
rank 0 alone samples, and tells the others' devices the token ids when the next step begins. Knows no CUDA: nothing here
depends on the kind of device.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from backends.pytorch.arrivals import Arrival, as_current
from backends.pytorch.attention import PagedAttention
from backends.pytorch.decode_graphs import DecodeGraphs
from backends.pytorch.device_memory import DeviceMemory, kv_cache_bytes
from backends.pytorch.device_sampler import Sample
from backends.pytorch.device_step import DeviceStep
from backends.pytorch.parallel.collective import Collective
from backends.pytorch.program import Program, StepInputs
from backends.pytorch.runner import TorchRunner
from backends.pytorch.step_arrays import step_arrays
from backends.pytorch.step_limits import StepLimits, decode_step, largest_step, warm_up_steps
from backends.pytorch.step_tensors import StepBuffers, StepShape, StepTensors
from backends.pytorch.token_slots import TokenSlots
from backends.pytorch.triton_kernels.device_code import is_launch_error
from nanovllm.batch import Batch, Int32Array, StepOutput
from nanovllm.errors import BackendError
from nanovllm.model_info import ModelInfo
from nanovllm.plugins.interfaces import PendingStep
from nanovllm.sampler import plain_rows

__all__ = ["DeviceRunner", "Rotations"]

BoolArray = npt.NDArray[np.bool_]
Rotations = Callable[[Tensor], list[Any]]
"""From positions (num_tokens,) to the rotations of a step, as the attention takes them."""

_LEAST_TOKEN_SLOTS = 1024  # four bytes each


class DeviceRunner(TorchRunner):
    """Model runner of a device. attention, rotations: of the same kind. graphs: None for none; only for a program that
    is static. memory: None where the engine sizes the KV cache. collective: the one that the program was recorded
    with, if the model is divided; ranks other than 0 run steps by `follow`."""

    overlaps = True
    """A token id of -1 stands for the token that was sampled last for its sequence."""

    def __init__(
        self,
        program: Program,
        rotations: Rotations,
        attention: PagedAttention[StepTensors],
        model_info: ModelInfo,
        *,
        device: torch.device,
        limits: StepLimits,
        sample: Sample,
        graphs: DecodeGraphs | None = None,
        memory: DeviceMemory | None = None,
        collective: Collective | None = None,
    ) -> None:
        super().__init__(program, [], attention, model_info, device=device, num_threads=1)
        self._rotations = rotations
        self._limits = limits
        self._sample = sample
        self._graphs = graphs if program.is_static else None
        self._memory = memory
        self._collective = collective
        self._is_first = collective is None or collective.rank.number == 0
        self._slots = TokenSlots(max(_LEAST_TOKEN_SLOTS, 2 * limits.max_num_seqs))
        self._latest = torch.zeros(self._slots.spare + 1, dtype=torch.int32, device=device)
        self._table_width = 0  # of captured graphs
        self._buffers = StepBuffers(0, device)
        self._pending: DeviceStep | None = None

    def kv_memory_bytes(self) -> int | None:
        """What the granted share of the device's memory leaves for the KV cache, found by running a step of the largest
        size, and one of the kind that graphs keep memory for. Drops the KV cache. All ranks are asked at once."""
        if self._memory is None:
            return None
        self.allocate_pools(1, self.preferred_block_size)
        largest, decode = (make(self._limits, self._table_width) for make in (largest_step, decode_step))
        runs: list[Callable[[], object]] = [lambda: (self.execute if self._is_first else self.follow)(largest)]
        if self._graphs is not None:
            runs.append(lambda: self._run_body(decode))
        with self._failures(largest.num_tokens):
            num_bytes = kv_cache_bytes(self._memory, *runs)
        self._slots.release(largest.seq_ids)
        self._attention.free()
        return num_bytes

    def allocate_pools(self, num_blocks: int, block_size: int) -> None:
        """Pools, and buffers for steps over blocks of that size; captured graphs would read the old ones."""
        if self._graphs is not None:
            self._graphs.clear()
        super().allocate_pools(num_blocks, block_size)
        limits = self._limits
        self._table_width = -(-limits.max_model_len // block_size)
        num_logits = max(limits.max_num_logits, limits.max_num_seqs)
        largest = StepShape(
            limits.max_num_batched_tokens, limits.max_num_seqs, self._table_width, num_logits, num_logits
        )
        self._buffers = StepBuffers(largest.num_words, self._device)

    def warm_up(self) -> None:
        """Captures all graphs, the largest first, whose memory the others share, and compiles what other steps and the
        sampler need. All ranks have to do so at once."""
        for step in warm_up_steps(self._limits, self._table_width) if self._memory is not None else ():
            with self._failures(step.num_tokens):
                self._run_body(step)
        for size in [1] if self._graphs is None else reversed(self._graphs.sizes):
            step = decode_step(self._limits, self._table_width, size)
            if not self._is_first:
                self.follow(step)
                continue
            with self._failures(size):
                self._run_and_sample(step, np.ones(size, np.bool_), np.full(size, self._slots.spare, np.int32))

    def submit(self, batch: Batch) -> PendingStep:
        """Queues a step and returns; the batch must stay as it is until its result has been taken."""
        if self._pending is not None:
            self._pending.settle()
        is_chosen = plain_rows(batch.sampling)
        with self._failures(batch.num_tokens):
            self._slots.release(set(batch.released_seq_ids).difference(batch.seq_ids))
            slots = self._slots.of(batch.seq_ids)
            arrival = self._run_and_sample(batch, is_chosen, slots)
        self._pending = DeviceStep(batch, is_chosen, arrival, self.draw, lambda output: self._keep(output, slots))
        return self._pending

    def execute(self, batch: Batch) -> StepOutput:
        return self.submit(batch).result()

    def follow(self, batch: Batch) -> None:
        """Queues this rank's share of a step and returns; its unknown tokens come from rank 0's device."""
        with self._failures(batch.num_tokens):
            self._launch(batch, np.zeros(batch.num_logits, np.bool_), np.zeros(batch.num_seqs, np.int32))

    def forward(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Logits, float32 (num_logits, vocab_size); a fresh array. Raises `BackendError`."""
        with self._failures(batch.num_tokens):
            _, logits = self._launch(batch, np.zeros(batch.num_logits, np.bool_), self._slots.of(batch.seq_ids))
            if logits is None:
                return np.empty((0, self.model_info.vocab_size), np.float32)
            array: npt.NDArray[np.float32] = logits.float().cpu().numpy()
            return array

    def close(self) -> None:
        super().close()
        if self._graphs is not None:
            self._graphs.clear()
        self._buffers = StepBuffers(0, self._device)
        self._pending = None

    @torch.inference_mode()
    def _run_and_sample(self, batch: Batch, is_chosen: BoolArray, slots: Int32Array) -> Arrival | None:
        """Queues a whole step: the tokens of the chosen rows and the logits of the others are on their way then."""
        step, logits = self._launch(batch, is_chosen, slots)
        if logits is None:
            return None
        chosen, others = logits, logits[:0]
        if not is_chosen.all():
            chosen, others = logits.index_select(0, step.chosen), logits.index_select(0, step.others)
        tokens = self._sample(chosen, step.sampling)
        self._latest.index_copy_(0, step.token_slots.long(), tokens.int())
        return Arrival([tokens, others.float()], self._device)

    @torch.inference_mode()
    def _launch(self, batch: Batch, is_chosen: BoolArray, slots: Int32Array) -> tuple[StepTensors, Tensor | None]:
        """Queues a step up to its logits, (num_logits, vocab_size); None where none are wanted."""
        program = self._open_program()
        if not self._attention.is_allocated:
            raise BackendError("the KV cache is not allocated: call allocate_kv_cache first.")
        size = self._graph_size(batch)
        step = self._put(batch, is_chosen, slots, size)
        if self._graphs is None or size is None:
            values = program.body(self._inputs_of(step), wants_logits=batch.num_logits > 0)
        else:
            values = self._graphs.run(size, lambda: program.body(self._inputs_of(step)))
        if not batch.num_logits:
            return step, None
        inputs = StepInputs(step.token_ids, step.positions, step.wanted, rotations=[], attention_plan=None)
        return step, program.head(inputs, values)

    @torch.inference_mode()
    def _run_body(self, batch: Batch) -> None:
        step = self._put(batch, np.ones(batch.num_logits, np.bool_), np.zeros(batch.num_seqs, np.int32), None)
        self._open_program().body(self._inputs_of(step))

    def _graph_size(self, batch: Batch) -> int | None:
        is_wide = batch.block_tables.shape[1] > self._table_width
        return None if self._graphs is None or is_wide else self._graphs.size_for(batch)

    def _put(self, batch: Batch, is_chosen: BoolArray, slots: Int32Array, size: int | None) -> StepTensors:
        """The step on the device, laid out as the graph of that size wants it, or to measure."""
        largest_id = int(batch.token_ids.max(initial=0))
        if largest_id >= self.model_info.vocab_size:  # on a CUDA device it would end the process's use of the device
            raise IndexError(f"token id {largest_id}; the model's ids are 0 to {self.model_info.vocab_size - 1}")
        num_chosen = int(is_chosen.sum())
        if size is None:
            width = batch.block_tables.shape[1]
            shape = StepShape(batch.num_tokens, batch.num_seqs, width, batch.num_logits, num_chosen)
            max_query_len = int((batch.query_start[1:] - batch.query_start[:-1]).max(initial=1))
        else:
            shape = StepShape(size, size, self._table_width, batch.num_logits, num_chosen)
            max_query_len = 1
        return self._buffers.put(step_arrays(batch, is_chosen, slots, self._slots.spare), shape, max_query_len)

    def _inputs_of(self, step: StepTensors) -> StepInputs:
        """Runs inside a graph: reads nothing but the step's memory."""
        ids = step.token_ids
        known = torch.where(ids < 0, self._latest[(-1 - ids).clamp_min_(0)], ids)
        if self._collective is not None:
            known = self._collective.broadcast(known)  # only rank 0 has the latest tokens
        return StepInputs(
            token_ids=known,
            positions=step.positions,
            wanted=step.wanted,
            rotations=self._rotations(step.positions),
            attention_plan=self._attention.plan(step),
        )

    @torch.inference_mode()
    def _keep(self, output: StepOutput, slots: Int32Array) -> None:
        """Puts tokens that the host sampled where the next step looks for them."""
        latest = {int(slot): tokens[-1] for slot, tokens in zip(slots, output.token_ids, strict=True) if tokens}
        at, tokens = (torch.tensor(list(part), device=self._device) for part in (latest.keys(), latest.values()))
        self._latest.index_copy_(0, at.long(), tokens.int())

    @contextmanager
    def _failures(self, num_tokens: int) -> Iterator[None]:
        """Errors of a step are `BackendError`s; its device is the current one, whatever thread asks."""
        try:
            with as_current(self._device):
                yield
        except Exception as error:
            if not isinstance(error, RuntimeError | IndexError | ValueError) and not is_launch_error(error):
                raise
            raise BackendError(f"torch failed in a step of {num_tokens} tokens: {error}") from error
