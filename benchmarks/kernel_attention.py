"""Paged attention on CPU, one layer: the stock body against the compiled kernel, alternating, medians.

    python benchmarks/kernel_attention.py [--threads 2] [--rounds 15]

Each workload walks through several layers' pools, so that keys and values come from memory as they do in a model, not
from a cache that a single layer would fit into. Shape: Qwen2-0.5B (14 heads, 2 KV heads of 64), blocks of 32 tokens.
Prints milliseconds a layer and the bandwidth at which the used part of the pools was read.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from backends.ort.kernels.library import find_library

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "kernels"))
from attention_node import AttentionShape, Step, open_node, random_step

SHAPE = AttentionShape(num_heads=14, num_kv_heads=2, head_size=64, block_size=32)
WORKLOADS = {
    "decode 1 x 900": [(899, 1)],
    "decode 1 x 4,000": [(3999, 1)],
    "decode 8 x 200": [(199, 1)] * 8,
    "decode 8 x 900": [(899, 1)] * 8,
    "decode 48 x 200": [(199, 1)] * 48,
    "decode 48 x 900": [(899, 1)] * 48,
    "decode 48, ragged 50-900": [(int(n), 1) for n in np.linspace(50, 900, 48)],
    "prefill 512": [(0, 512)],
    "prefill 512 after 1,500": [(1500, 512)],
    "mixed: 47 x 200 and 256": [*[(199, 1)] * 47, (0, 256)],
}
POOL_BYTES = 256 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    parser.add_argument("--library", type=Path, default=None, help="another kernel library")
    options = parser.parse_args()
    library = options.library or find_library()
    if library is None:
        raise SystemExit("no kernel library is built: reinstall the package where a C++ compiler is.")
    sessions = {
        "stock": open_node(SHAPE, None, num_threads=options.threads),
        "kernel": open_node(SHAPE, library, num_threads=options.threads),
    }
    print(f"{'':<28}{'stock ms':>10}{'kernel ms':>11}{'ratio':>7}{'kernel GB/s':>13}")
    for name, lens in WORKLOADS.items():
        if options.only in name:
            times = _measure(sessions, random_step(SHAPE, lens), options.rounds)
            num_bytes = sum((context + queries) for context, queries in lens) * 2 * SHAPE.num_kv_heads * 64 * 4
            stock, kernel = times["stock"], times["kernel"]
            print(f"{name:<28}{stock:>10.3f}{kernel:>11.3f}{stock / kernel:>7.1f}{num_bytes / kernel / 1e6:>13.1f}")


def _measure(sessions: dict[str, onnxruntime.InferenceSession], step: Step, rounds: int) -> dict[str, float]:
    """Median milliseconds a layer, of rounds in which every session runs all layers."""
    pools = np.nan_to_num(np.stack([step.inputs["key_cache"], step.inputs["value_cache"]]))
    num_layers = max(2, min(24, POOL_BYTES // pools.nbytes))
    layers = np.repeat(pools[None], num_layers, axis=0)
    runs = {name: [_bound(session, step, layer) for layer in layers] for name, session in sessions.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, layer_runs in runs.items():
            start = time.perf_counter()
            for run in layer_runs:
                run()
            times[name].append((time.perf_counter() - start) * 1e3 / num_layers)
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def _bound(session: onnxruntime.InferenceSession, step: Step, pools: Any) -> Callable[[], None]:
    inputs = dict(step.inputs, key_cache=pools[0], value_cache=pools[1])
    outputs = {"output": np.empty_like(step.inputs["query"]), "key_cache_out": pools[0], "value_cache_out": pools[1]}
    binding = session.io_binding()
    for bind, arrays in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
        for name, array in arrays.items():
            bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def run(keep: object = (inputs, outputs)) -> None:
        session.run_with_iobinding(binding)

    return run


if __name__ == "__main__":
    main()
