"""What a decode step of greedy sequences costs with the graph's greedy head, and with logits and the arg-max of them.

    python benchmarks/greedy_head.py FOLDER ... [--seqs 1 2 4 8 48] [--context 256] [--threads 2] [--rounds 40]

The folders are exports with a greedy head (int8 and int4). Both ways run in one session, alternating; medians, and the
median of the ratios of neighbouring steps. The ids of both are compared.
"""

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from precision_report import BLOCK_SIZE, make_batch

from backends.ort.plugin import nanovllm_model_runners
from nanovllm.batch import Batch
from nanovllm.config import EngineConfig
from nanovllm.plugins import LogitsModelRunner, ModelSource

NUM_BATCHES = 8  # of different tokens, so that the ids differ


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--seqs", nargs="+", type=int, default=[1, 2, 4, 8, 48])
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    print(f"{'':>24}{'sequences':>10}{'logits ms':>11}{'greedy ms':>11}{'ratio':>8}")
    for folder in options.folders:
        runner = make_runner(folder, options.threads)
        for num_seqs in options.seqs:
            runner.allocate_kv_cache(num_seqs * -(-(options.context + 1) // BLOCK_SIZE), BLOCK_SIZE)
            batches = make_batches(num_seqs, options.context, runner.model_info.vocab_size)
            logits, greedy, ratio = compare(runner, batches, options.rounds)
            print(
                f"{folder.name:>24}{num_seqs:10}{logits * 1e3:11.2f}{greedy * 1e3:11.2f}{ratio:8.3f}",
                flush=True,
            )
        runner.close()


def make_runner(folder: Path, num_threads: int) -> LogitsModelRunner:
    (plugin,) = nanovllm_model_runners()
    runner = plugin.factory(ModelSource(str(folder), folder), EngineConfig(model=str(folder), num_threads=num_threads))
    assert isinstance(runner, LogitsModelRunner)
    return runner


def make_batches(num_seqs: int, context: int, vocab_size: int) -> list[Batch]:
    batch = make_batch(num_seqs, 1, context, vocab_size)
    random = np.random.default_rng(1)
    return [replace(batch, token_ids=random.integers(0, vocab_size, num_seqs)) for _ in range(NUM_BATCHES)]


def compare(runner: LogitsModelRunner, batches: list[Batch], num_rounds: int) -> tuple[float, float, float]:
    """Median seconds of a step by logits and by the greedy head, and the median ratio of the one to the other."""
    times: list[tuple[float, float]] = []
    for i in range(num_rounds + 1):
        batch = batches[i % len(batches)]
        start = time.perf_counter()
        by_logits = LogitsModelRunner.execute(runner, batch)
        middle = time.perf_counter()
        greedy = runner.execute(batch)
        times.append((middle - start, time.perf_counter() - middle))
        assert greedy.token_ids == by_logits.token_ids
    logits_s, greedy_s = zip(*times[1:], strict=True)  # the first one warms up
    ratios = [a / b for a, b in times[1:]]
    return statistics.median(logits_s), statistics.median(greedy_s), statistics.median(ratios)


if __name__ == "__main__":
    main()
