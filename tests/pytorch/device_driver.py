"""Device runners on the CPU; graphs that only run their program again; and steps made by hand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from backends.pytorch.cpu_attention import CPUAttention
from backends.pytorch.decode_graphs import Capture
from backends.pytorch.device_memory import DeviceMemory
from backends.pytorch.device_runner import DeviceRunner
from backends.pytorch.load import DeviceParts, load_device_runner, triton_parts
from backends.pytorch.parallel.collective import Collective
from backends.pytorch.program import Values
from backends.pytorch.step_limits import StepLimits
from nanovllm import SamplingParams
from nanovllm.batch import SAMPLING_ROW, Batch, LogitsEdits, SamplingBatch
from nanovllm.checkpoint import Checkpoint
from nanovllm.errors import BackendError
from nanovllm.plugins import ModelRunner
from tests.pytorch.planned_attention import PlannedAttention, planned_rotations

__all__ = [
    "ANY_PARAMS",
    "LIMITS",
    "RerunGraph",
    "Sequences",
    "a_failing_edit_costs_its_step_only",
    "load_device",
    "one_after_the_other",
    "overlapped",
    "sampling_row",
]

LIMITS = StepLimits(max_num_seqs=9, max_num_batched_tokens=64, max_num_logits=64, max_model_len=128)

ANY_PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.0, 0.7, 1.5]),
    top_k=st.sampled_from([0, 3]),
    top_p=st.sampled_from([1.0, 0.8]),
    seed=st.integers(0, 9),
    logprobs=st.sampled_from([None, None, 2]),
    prompt_logprobs=st.sampled_from([None, None, 1]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.5]),
    max_tokens=st.integers(1, 5),
    ignore_eos=st.just(True),
)
"""Whatever a device samples itself, and rows that it leaves to the host."""


class RerunGraph:
    """Stands in for a CUDA graph: it runs again what it was made from, and leaves the values where they were at first,
    so that whatever reads memory of another step, or asks the host for anything, is found out."""

    def __init__(self, compute: Callable[[], Values]) -> None:
        self._compute = compute
        self._values = {place: value.clone() for place, value in compute().items()}

    def replay(self) -> Values:
        for place, value in self._compute().items():
            self._values[place].copy_(value)
        return self._values


def load_device(
    folder: Path,
    *,
    triton: bool = False,
    dtype: str = "float32",
    capture: Capture | None = None,
    memory: DeviceMemory | None = None,
    limits: StepLimits = LIMITS,
    collective: Collective | None = None,
) -> DeviceRunner:
    """A device runner on the CPU. triton: with the kernels of CUDA, interpreted, which takes some 5 ms each.
    collective: of the ranks that the model is divided among; the runner is that of one of them."""
    if triton:
        parts = triton_parts(4, capture=capture, memory=memory)
    else:
        parts = DeviceParts(
            make_attention=lambda *arguments: PlannedAttention(CPUAttention(*arguments)),
            make_rotations=planned_rotations,
            capture=capture,
            memory=memory,
        )
    torch.set_num_threads(1)
    checkpoint = Checkpoint(folder)
    return load_device_runner(
        checkpoint, torch.device("cpu"), parts, name="model", dtype=dtype, limits=limits, collective=collective
    )


class Sequences:
    """Makes steps of a fixed number of sequences, each of which owns `num_blocks` blocks from the start.

    rows: (num_seqs,) of SAMPLING_ROW. edits: by sequence.
    """

    def __init__(
        self,
        rows: np.ndarray[tuple[int], np.dtype[np.void]],
        *,
        block_size: int = 8,
        num_blocks: int = 8,
        edits: Mapping[int, LogitsEdits] | None = None,
    ) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.num_computed = [0] * len(rows)
        self._rows = rows
        self._edits = edits or {}

    @property
    def total_blocks(self) -> int:
        return len(self._rows) * self.num_blocks

    def step(self, new_tokens: Mapping[int, Sequence[int]], *, released: Sequence[int] = ()) -> Batch:
        """The sequences of `new_tokens`, which are counted as computed then; the last row of each is wanted."""
        members = list(new_tokens)
        lens = [len(new_tokens[i]) for i in members]
        contexts = [self.num_computed[i] for i in members]
        positions = np.concatenate([c + np.arange(n) for c, n in zip(contexts, lens, strict=True)])
        tables = np.array([np.arange(self.num_blocks) + i * self.num_blocks for i in members], np.int32)
        owner = np.repeat(np.arange(len(members)), lens)
        slots = tables[owner, positions // self.block_size] * self.block_size + positions % self.block_size
        starts = np.array([0, *accumulate(lens)], np.int32)
        for i, length in zip(members, lens, strict=True):
            self.num_computed[i] += length
        wanted = starts[1:] - 1
        return Batch(
            seq_ids=members,
            released_seq_ids=list(released),
            token_ids=np.array([token for i in members for token in new_tokens[i]], np.int64),
            positions=positions,
            query_start=starts,
            context_lens=np.array(contexts, np.int32),
            block_tables=tables,
            slot_mapping=slots.astype(np.int32),
            logits_indices=wanted,
            logits_start=np.arange(len(members) + 1, dtype=np.int32),
            adapter_ids=np.zeros(len(members), np.int32),
            sampling=SamplingBatch(
                self._rows[members],
                positions[wanted] + 1,
                {row: self._edits[i] for row, i in enumerate(members) if i in self._edits},
            ),
        )


def sampling_row(**parameters: float) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """(1,) of SAMPLING_ROW, greedy unless said otherwise."""
    row = np.zeros(1, SAMPLING_ROW)
    row["top_p"] = 1
    for name, value in parameters.items():
        row[name] = value
    return row


def a_failing_edit_costs_its_step_only(runner: ModelRunner) -> None:
    """Asserts that, with one more step under way."""

    def fail(token_ids: list[int], logits: object) -> NoReturn:
        raise ArithmeticError("no")

    steps = Sequences(np.concatenate([sampling_row()] * 2), edits={1: LogitsEdits(processors=(fail,))})
    runner.allocate_kv_cache(steps.total_blocks, steps.block_size)
    failing = runner.submit(steps.step({0: [1], 1: [2]}))
    next_one = runner.submit(steps.step({0: [3]}))
    with pytest.raises(BackendError, match="ArithmeticError: no"):
        failing.result()
    assert len(next_one.result().token_ids) == 1


def one_after_the_other(
    runner: ModelRunner, sequences: Sequences, prompts: dict[int, list[int]], present: list[set[int]]
) -> list[list[list[int]]]:
    runner.allocate_kv_cache(sequences.total_blocks, sequences.block_size)
    results = [[list(ids) for ids in runner.execute(sequences.step(prompts)).token_ids]]
    latest = {i: ids[0] for i, ids in zip(prompts, results[0], strict=True)}
    for members in present:
        output = runner.execute(sequences.step({i: [latest[i]] for i in members}))
        latest.update({i: ids[0] for i, ids in zip(members, output.token_ids, strict=True)})
        results.append([list(ids) for ids in output.token_ids])
    runner.execute(replace(sequences.step({0: [1]}), released_seq_ids=list(prompts), seq_ids=[-1]))
    return results


def overlapped(
    runner: ModelRunner, sequences: Sequences, prompts: dict[int, list[int]], present: list[set[int]]
) -> list[list[list[int]]]:
    """Every step is submitted before the result of the one before is taken."""
    runner.allocate_kv_cache(sequences.total_blocks, sequences.block_size)
    pending = [runner.submit(sequences.step(prompts))]
    results = []
    for members in present:
        pending.append(runner.submit(sequences.step({i: [-1] for i in members})))
        results.append(pending.pop(0).result())
    results.append(pending.pop().result())
    return [[list(ids) for ids in output.token_ids] for output in results]
