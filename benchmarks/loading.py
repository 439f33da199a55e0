"""How soon an exported model answers, and how much memory it takes for that.

    python benchmarks/loading.py FOLDER ... [--rounds 5]

Each round is a process of its own that imports nanovllm, loads the folder and answers one token; the weights are in the
page cache after the first, which is not counted. Prints medians: seconds from the start of the program to the answer,
of that to the loaded model, and the peak resident memory without the KV cache as a multiple of the weights' bytes.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

KV_CACHE_BYTES = 64 * 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(answer_once(arguments.folders[0])))
        return
    print(f"{'':>30}{'answer s':>12}{'loaded s':>12}{'peak MiB':>12}{'weights MiB':>12}{'ratio':>8}")
    for folder in arguments.folders:
        rows = [measure(folder) for _ in range(arguments.rounds + 1)][1:]
        answer, loaded, peak, weights = (
            statistics.median(row[key] for row in rows) for key in ("answer", "loaded", "peak", "weights")
        )
        print(
            f"{Path(folder).name:>30}{answer:12.2f}{loaded:12.2f}{peak / 2**20:12.0f}{weights / 2**20:12.0f}"
            f"{peak / weights:8.2f}",
            flush=True,
        )


def measure(folder: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", folder]
    start = time.perf_counter()
    process = subprocess.run(command, check=True, capture_output=True, text=True)
    return {"answer": time.perf_counter() - start, **json.loads(process.stdout)}


def answer_once(folder: str) -> dict[str, float]:
    start = time.perf_counter()
    from nanovllm import LLM, SamplingParams
    from nanovllm.model_info import ModelInfo
    from nanovllm.resources import peak_memory_bytes

    with LLM(folder, kv_cache_memory_bytes=KV_CACHE_BYTES) as llm:
        loaded = time.perf_counter() - start
        llm.generate([[1, 2, 3, 4]], SamplingParams(max_tokens=1, temperature=0))
        peak = (peak_memory_bytes() or 0) - KV_CACHE_BYTES
    weights = sum(file.num_bytes for file in ModelInfo.load(Path(folder)).weights)
    return {"loaded": loaded, "peak": peak, "weights": weights}


if __name__ == "__main__":
    main()
