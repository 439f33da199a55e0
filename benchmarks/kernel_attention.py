"""Paged attention on CPU, one layer, for each dtype of the KV cache: compiled kernel and stock body, medians.

    python benchmarks/kernel_attention.py [--threads 2] [--rounds 15] [--stock] [--only decode]

Each workload walks through several layers' pools, so that keys and values come from memory as they do in a model, not
from a cache that a single layer would fit into. Shape: Qwen2-0.5B (14 heads, 2 KV heads of 64), blocks of 32 tokens,
scattered. Prints milliseconds a layer, the bandwidth at which the used part of the pools was read, and what share that
is of reading memory in order with as many threads.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime

from backends.ort.kernels.library import find_library
from export.paged_attention import KV_DTYPES, KVDType

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "kernels"))
from attention_node import POOLS, AttentionShape, Step, bound, open_node, random_step
from attention_pools import Arrays, zeroed

SHAPE = AttentionShape(num_heads=14, num_kv_heads=2, head_size=64, block_size=32)
WORKLOADS = {
    "decode 1 x 2,000": [(1999, 1)],
    "decode 16 x 2,000": [(1999, 1)] * 16,
    "decode 48 x 200": [(199, 1)] * 48,
    "decode 48 x 900": [(899, 1)] * 48,
    "decode 48, ragged 50-900": [(int(n), 1) for n in np.linspace(50, 900, 48)],
    "prefill 512": [(0, 512)],
    "prefill 512 after 1,500": [(1500, 512)],
    "mixed: 47 x 200 and 256": [*[(199, 1)] * 47, (0, 256)],
}
POOL_BYTES = 256 << 20
BYTES_PER_HEAD = {"float32": 64 * 4, "bfloat16": 64 * 2, "int8": 64 + 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    parser.add_argument("--dtype", nargs="*", choices=KV_DTYPES, default=KV_DTYPES)
    parser.add_argument("--stock", action="store_true", help="the stock body as well")
    parser.add_argument("--library", type=Path, nargs="*", help="other kernel libraries, alternating")
    options = parser.parse_args()
    libraries = options.library or [find_library()]
    if None in libraries:
        raise SystemExit("no kernel library is built: reinstall the package where a C++ compiler is.")
    libraries += [None] if options.stock else []
    stream = _streaming_bandwidth(options.threads)
    print(f"streaming: {stream / 1e9:.1f} GB/s with {options.threads} threads")
    print(f"{'':<26}{'KV':<10}{'':<24}{'ms':>9}{'GB/s':>7}{'of stream':>11}")
    for name, lens in WORKLOADS.items():
        for dtype in options.dtype if options.only in name else ():
            tokens = sum(context + queries for context, queries in lens)
            num_bytes = tokens * 2 * SHAPE.num_kv_heads * BYTES_PER_HEAD[dtype]
            for library, ms in _measure(lens, dtype, libraries, options.threads, options.rounds).items():
                rate = num_bytes / ms * 1e3
                what = "stock body" if library is None else library.stem
                print(f"{name:<26}{dtype:<10}{what:<24}{ms:>9.3f}{rate / 1e9:>7.1f}{rate / stream:>10.0%}", flush=True)


def _streaming_bandwidth(threads: int) -> float:
    """Bytes a second of reading memory in order, the best of some runs."""
    parts = np.ones((threads, (POOL_BYTES // 4) // threads), np.float32)

    def read() -> float:
        start = time.perf_counter()
        list(pool.map(np.max, parts))
        return parts.nbytes / (time.perf_counter() - start)

    with ThreadPoolExecutor(threads) as pool:
        return max(read() for _ in range(8))


def _measure(
    lens: Sequence[tuple[int, int]], dtype: KVDType, libraries: Sequence[Path | None], threads: int, rounds: int
) -> dict[Path | None, float]:
    """Median milliseconds a layer by library, of rounds in which each runs all layers."""
    shape = replace(SHAPE, kv_dtype=dtype)
    step = random_step(shape, lens)
    num_bytes = sum(step.inputs[name].nbytes for name in POOLS if name in step.inputs)
    num_layers = max(2, min(64, POOL_BYTES // num_bytes))
    pools = {name: np.repeat(zeroed(step.inputs[name])[None], num_layers, 0) for name in POOLS if name in step.inputs}
    runs = {
        library: [_bound(session, step, {name: pools[name][i] for name in pools}) for i in range(num_layers)]
        for library in libraries
        for session in [open_node(shape, library, num_threads=threads)]
    }
    times: dict[Path | None, list[float]] = {library: [] for library in runs}
    for _ in range(rounds + 1):
        for library, layer_runs in runs.items():
            start = time.perf_counter()
            for run in layer_runs:
                run()
            times[library].append((time.perf_counter() - start) * 1e3 / num_layers)
    return {library: statistics.median(taken[1:]) for library, taken in times.items()}


def _bound(session: onnxruntime.InferenceSession, step: Step, pools: Arrays) -> Callable[[], None]:
    inputs = {**step.inputs, **pools}
    outputs = {"output": np.empty_like(step.inputs["query"]), **{f"{name}_out": pools[name] for name in pools}}
    binding = bound(session, inputs, outputs)

    def run(keep: object = (inputs, outputs)) -> None:
        session.run_with_iobinding(binding)

    return run


if __name__ == "__main__":
    main()
