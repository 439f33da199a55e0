"""What sampling a step costs: 48 rows of 151,936 logits, in numpy and in the kernel library, alternating, medians.

    python benchmarks/sampling_cost.py [--rows 48] [--vocab 151936] [--threads 2] [--rounds 15] [--model FOLDER]

Flat logits are the worst case, normally distributed; peaked ones look like a model's. With --model (an int8 export of
that vocabulary) a decode step of as many sequences at context 200 is timed in the same run, without sampling, and costs
are also printed as a share of it. On one thread its processor time is taken, which other work on the machine disturbs
less.
"""

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from backends.ort.kernels.library import find_library
from backends.ort.kernels.sampler import CompiledSampler
from nanovllm.batch import SAMPLING_ROW
from nanovllm.sampler import draw

CONTEXT = 200
NUMPY_ROUNDS = 3
PARAMETERS: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0},
    "temperature 0.8": {"temperature": 0.8},
    "temperature 0.8, top_p 0.95": {"temperature": 0.8, "top_p": 0.95},
    "temperature 0.8, top_k 50": {"temperature": 0.8, "top_k": 50},
    "temperature 0.8, min_p 0.05": {"temperature": 0.8, "min_p": 0.05},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--library", type=Path, default=None, help="another kernel library")
    options = parser.parse_args()
    library = options.library or find_library()
    if library is None:
        raise SystemExit("no kernel library is built: reinstall the package where a C++ compiler is.")
    sampler = CompiledSampler(ctypes.CDLL(str(library)), options.threads)
    shape = (options.rows, options.vocab)
    uniforms = np.random.default_rng(1).random(options.rows)
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    step = decode_seconds(clock, options.model, options) if options.model else None
    if step is not None:
        print(f"decode step of {options.rows} sequences: {step * 1e3:.1f} ms")
    print(f"{options.rows} rows of {options.vocab:,} logits, {options.threads} threads")
    print(f"{'':<38}{'numpy ms':>10}{'kernel ms':>11}{'ratio':>7}{'of a step':>11}")
    for kind, logits in (("flat", flat(shape)), ("peaked", peaked(shape))):
        for name, parameters in PARAMETERS.items():
            rows = np.zeros(options.rows, SAMPLING_ROW)
            rows["top_p"] = 1
            for field, value in parameters.items():
                rows[field] = value
            slow = median_seconds(clock, lambda rows=rows, x=logits: draw(x, rows, uniforms), NUMPY_ROUNDS)
            fast = median_seconds(clock, lambda rows=rows, x=logits: sampler.draw(x, rows, uniforms), options.rounds)
            share = f"{fast / step:11.1%}" if step else ""
            print(f"{f'{kind}, {name}':<38}{slow * 1e3:10.1f}{fast * 1e3:11.2f}{slow / fast:7.0f}{share}", flush=True)


def flat(shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def peaked(shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Wide, with one token of each row far out."""
    rng = np.random.default_rng(2)
    logits = rng.standard_normal(shape, np.float32) * np.float32(2.5)
    logits[np.arange(shape[0]), rng.integers(shape[1], size=shape[0])] += 14
    return logits


def median_seconds(clock: Callable[[], float], call: Callable[[], object], num_rounds: int) -> float:
    times = []
    for _ in range(num_rounds + 1):
        start = clock()
        call()
        times.append(clock() - start)
    return statistics.median(times[1:])  # the first one warms up


def decode_seconds(clock: Callable[[], float], folder: Path, options: argparse.Namespace) -> float:
    """A decode step of the runner that the engine would use, up to its logits."""
    from precision_report import BLOCK_SIZE, make_batch

    from backends.ort.plugin import nanovllm_model_runners
    from nanovllm.config import EngineConfig
    from nanovllm.model_info import ModelInfo
    from nanovllm.plugins import LogitsModelRunner, ModelSource

    (plugin,) = nanovllm_model_runners()
    config = EngineConfig(model=str(folder), num_threads=options.threads)
    runner = plugin.factory(ModelSource(str(folder), folder), config)
    assert isinstance(runner, LogitsModelRunner)
    runner.allocate_kv_cache(options.rows * -(-(CONTEXT + 1) // BLOCK_SIZE), BLOCK_SIZE)
    batch = make_batch(options.rows, 1, CONTEXT, ModelInfo.load(folder).vocab_size)
    return median_seconds(clock, lambda: runner.forward(batch), options.rounds)


if __name__ == "__main__":
    main()
