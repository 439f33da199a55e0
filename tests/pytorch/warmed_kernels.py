"""A program: which variants of kernels steps need that the start-up has not launched, on a device that is not there.

    python warmed_kernels.py FOLDER

Random steps of decodes and chunks, eager and through graphs, within limits as they are set for a GPU. Prints, as JSON,
how many variants were launched at the start and in steps, and those of the latter that are not among the former: each
would be compiled in the middle of serving, which all requests would wait for.
"""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from backends.pytorch.device_runner import DeviceRunner
from backends.pytorch.load import load_device_runner, triton_parts
from backends.pytorch.step_limits import StepLimits
from nanovllm.batch import Batch
from nanovllm.checkpoint import Checkpoint
from tests.pytorch.device_driver import RerunGraph, Sequences, sampling_row
from tests.pytorch.far_device import far_device

LIMITS = StepLimits(max_num_seqs=256, max_num_batched_tokens=8192, max_num_logits=512, max_model_len=4096)
BLOCK_SIZE = 32
NUM_STEPS = 60


class Memory:
    """There is plenty."""

    utilization = 0.9
    others_bytes = 0

    def total_and_free(self) -> tuple[int, int]:
        return 2**36, 2**36

    def peak_bytes(self, run: Callable[[], object]) -> int:
        run()
        return 0


def start(folder: Path, device: torch.device, *, eager: bool) -> DeviceRunner:
    parts = triton_parts(132, capture=None if eager else RerunGraph, memory=Memory())
    runner = load_device_runner(Checkpoint(folder), device, parts, name="model", dtype="bfloat16", limits=LIMITS)
    if not eager:  # a user may set the size of the KV cache, so that nobody asks
        runner.kv_memory_bytes()
    runner.allocate_kv_cache(64, BLOCK_SIZE)
    return runner


def random_step(draw: random.Random) -> Batch:
    """Some decodes and some chunks of about the same length, each somewhere in its sequence."""
    num_decodes, num_chunks = draw.choice([0, 1, 5, 20, 60, 200]), draw.choice([0, 1, 2, 4, 8, 16, 32])
    longest = draw.choice([2, 3, 5, 8, 12, 30, 60, 100, 130, 300, 700, 2000])
    lens = [1] * num_decodes + [draw.randint(1, longest) for _ in range(num_chunks)] or [longest]
    while sum(lens) > LIMITS.max_num_batched_tokens:
        lens.pop()
    steps = Sequences(
        np.concatenate([sampling_row()] * len(lens)),
        block_size=BLOCK_SIZE,
        num_blocks=LIMITS.max_model_len // BLOCK_SIZE,
    )
    steps.num_computed = [draw.randint(0, LIMITS.max_model_len - length) for length in lens]
    return steps.step({i: [1] * length for i, length in enumerate(lens)})


def main() -> None:
    draw = random.Random(0)
    with far_device() as (device, kernels):
        for eager in (False, True):
            for kernel in kernels:
                kernel.variants = set()
            runner = start(Path(sys.argv[1]), device, eager=eager)
            warmed = [kernel.variants for kernel in kernels]
            for kernel in kernels:
                kernel.variants = set()
            for _ in range(NUM_STEPS):
                runner.submit(random_step(draw))
            used = [kernel.variants for kernel in kernels]
            missing = {
                name: sorted(map(str, late - early))
                for name, early, late in zip(kernels._fields, warmed, used, strict=True)
            }
            counts = {"warmed": sum(map(len, warmed)), "used": sum(map(len, used)), "missing": missing}
            print(json.dumps(counts), flush=True)
            runner.close()


if __name__ == "__main__":
    main()
