"""Host time of one decode step: the engine around a runner that costs nothing.

    python benchmarks/engine_overhead.py [--num-seqs 256] [--context 200] [--steps 200] [--rounds 5]

The mock runner answers at once (its own time is subtracted), the tokenizer is the byte-level BPE of models/tiny-chat,
and every sequence decodes one token a step. Printed: the median over rounds of the time of a step, and each part's.
`detokenize` is what is left: text, stop checks and outputs. The cold import of the package is measured too.
"""

import argparse
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from nanovllm import EngineConfig, RequestOutputKind, SamplingParams
from nanovllm.engine import execution as execution_module
from nanovllm.engine.build import build_engine
from nanovllm.engine.scheduler import Scheduler
from nanovllm.plugins import ModelRunner

Seconds = Counter[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-seqs", type=int, default=256)
    parser.add_argument("--context", type=int, default=200, help="prompt tokens of each sequence")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stream", action="store_true", help="make an output for every sequence and step")
    options = parser.parse_args()

    seconds: Seconds = Counter()
    _time_parts(seconds)
    rounds = [_round(options, seconds) for _ in range(options.rounds)]
    print(f"{options.num_seqs} sequences, context {options.context}, {options.rounds} rounds of {options.steps} steps")
    total = statistics.median(sum(parts.values()) for parts in rounds)
    for part in ("schedule", "batch", "update", "detokenize"):
        median = statistics.median(parts[part] for parts in rounds)
        print(f"  {part:<11} {median * 1e3:6.3f} ms  {median / total:4.0%}")
    print(f"  {'step':<11} {total * 1e3:6.3f} ms")
    print(f"  cold import {_import_seconds(options.rounds) * 1e3:6.0f} ms")


def _time_parts(seconds: Seconds) -> None:
    """Wraps the parts of a step, once each per step, so that the timers themselves do not show."""

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments)
            seconds[part] += time.perf_counter() - start
            return result

        return wrapper

    Scheduler.schedule = timed("schedule", Scheduler.schedule)
    Scheduler.update = timed("update", Scheduler.update)
    ModelRunner.submit = timed("runner", ModelRunner.submit)
    execution_module.build_batch = timed("batch", execution_module.build_batch)


def _round(options: argparse.Namespace, seconds: Seconds) -> Seconds:
    """Seconds of each part of a step, without the runner's."""
    config = EngineConfig(
        model="tiny-chat",
        backend="mock",
        backend_options={"check": False},
        max_num_seqs=options.num_seqs,
        max_num_batched_tokens=8192,
        max_model_len=options.context + options.steps + 64,
    )
    engine = build_engine(config).engine
    randomness = random.Random(0)
    kind = RequestOutputKind.DELTA if options.stream else RequestOutputKind.FINAL_ONLY
    params = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True, output_kind=kind)
    for i in range(options.num_seqs):
        prompt = [randomness.randrange(3, 2000) for _ in range(options.context)]
        engine.add(engine.prepare(str(i), prompt, params))
    while engine.stats().decode_tokens < options.num_seqs * 10:
        engine.step()
    seconds.clear()
    start = time.perf_counter()
    for _ in range(options.steps):
        engine.step()
    total = time.perf_counter() - start
    assert engine.stats().num_running == options.num_seqs, "every sequence must decode to the end"
    engine.close()
    parts = Counter(seconds)
    runner = parts.pop("runner")
    parts["detokenize"] = total - runner - sum(parts.values())
    return Counter({part: value / options.steps for part, value in parts.items()})


def _import_seconds(rounds: int) -> float:
    code = "import time; t = time.perf_counter(); import nanovllm; print(time.perf_counter() - t)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, check=True) for _ in range(rounds)]
    return statistics.median(float(run.stdout) for run in runs)


if __name__ == "__main__":
    main()
