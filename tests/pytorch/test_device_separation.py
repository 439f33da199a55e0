"""On torch's meta device, whose tensors have shapes and no numbers, a step runs up to what it sends to the host: so
nothing in it waits for a device's values, and nothing mixes memory of host and device."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_driver import LIMITS, RerunGraph, Sequences, sampling_row
from torch import Tensor

from backends.pytorch.attention import HeadGains
from backends.pytorch.load import DeviceParts, load_device_runner
from backends.pytorch.step_tensors import StepTensors
from backends.pytorch.triton_attention import PairRotation
from nanovllm.architectures import AttentionSpec
from nanovllm.batch import LogitsEdits
from nanovllm.checkpoint import Checkpoint
from nanovllm.testing import tiny_config, write_checkpoint

META = torch.device("meta")


class ShapesOfAttention:
    """Checks what attention is given and gives the query back."""

    def __init__(self, *arguments: object) -> None:
        self.is_allocated = False

    def allocate(self, num_blocks: int, block_size: int) -> None:
        self.is_allocated = True

    def free(self) -> None:
        self.is_allocated = False

    def plan(self, step: StepTensors) -> StepTensors:
        return step

    def attend(
        self, plan: StepTensors, spec: AttentionSpec, rotation: PairRotation, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        given = [query, key, value, rotation.cos, rotation.sin, plan.slot_mapping, plan.block_tables]
        assert {tensor.device for tensor in given} == {META}
        assert query.stride(1) == key.stride(1) == value.stride(1) == 1
        return query

    def attend_normed(self, gains: HeadGains) -> None:
        """Norms are operations of their own here."""


class KeptArrival:
    """Keeps what is sent to the host."""

    tensors: Sequence[Tensor] = ()

    def __init__(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        KeptArrival.tensors = tensors


@pytest.mark.parametrize("capture", [None, RerunGraph])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_up_to_its_results_a_step_reads_nothing_back(
    tmp_path: Path, dtype: str, capture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.pytorch.device_runner.Arrival", KeptArrival)
    folder = write_checkpoint(tmp_path / "model", tiny_config(model_type="qwen3"))
    parts = DeviceParts(make_attention=ShapesOfAttention, capture=capture)
    runner = load_device_runner(Checkpoint(folder), META, parts, name="model", dtype=dtype, limits=LIMITS)
    rows = [
        sampling_row(),
        sampling_row(temperature=1, top_p=0.9, min_p=0.1),
        sampling_row(temperature=1, top_k=5, top_p=0.9),
        sampling_row(),
    ]
    steps = Sequences(np.concatenate(rows), edits={3: LogitsEdits(banned=np.arange(5))})
    runner.allocate_kv_cache(steps.total_blocks, steps.block_size)
    runner.submit(steps.step({0: [1, 2, 3], 1: [4], 2: [5, 6]}))
    runner.submit(steps.step({0: [-1], 1: [-1], 2: [-1]}))
    tokens, others = KeptArrival.tensors
    assert (tokens.shape, tokens.dtype, tokens.device) == ((3,), torch.int64, META)
    assert others.shape == (0, 211)
    runner.submit(steps.step({3: [1, 2], 0: [-1]}))
    tokens, others = KeptArrival.tensors
    assert (tokens.shape, others.shape, others.dtype) == ((1,), (1, 211), torch.float32)
