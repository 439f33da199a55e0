"""How long running sequences wait for their next token when a long prompt arrives, with and without chunks.

    python -m export --model Qwen/Qwen2-0.5B-Instruct --random-weights --precision int8 --max-length 8192 --output DIR
    python benchmarks/stall_free.py DIR --tokenizer tiny-chat [--prompt 4000] [--num-seqs 16] [--budgets 512 256]
    python benchmarks/stall_free.py any --backend mock        the engine alone

`num-seqs` streams of an AsyncLLM decode; when each has had `--before` tokens, a prompt arrives. Printed, in ms: the
time between two tokens of a stream, as its reader sees it, before the arrival and from then to the long prompt's first
token; what the budget implies on average, a step of decoding and, on top, the share of the prompt that the budget
leaves room for, at the prompt's own speed when it runs alone (late chunks, which attend to more, cost more); and the
long prompt's time to first token. The last line is without chunks.
"""

import argparse
import asyncio
import math
import random
import statistics
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from nanovllm import AsyncLLM, RequestOutputKind, SamplingParams


@dataclass
class Gaps:
    """Seconds. before, during: between two tokens of a stream. first_token, alone: of the long prompt, among the
    streams and by itself."""

    before: list[float] = field(default_factory=list)
    during: list[float] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--backend")
    parser.add_argument("--tokenizer", help="where the folder has none; it is not used")
    parser.add_argument("--num-seqs", type=int, default=16)
    parser.add_argument("--context", type=int, default=100, help="prompt tokens of the decoding sequences")
    parser.add_argument("--prompt", type=int, default=4000, help="tokens of the prompt that arrives")
    parser.add_argument("--before", type=int, default=20, help="tokens of each stream before it arrives")
    parser.add_argument("--budgets", type=int, nargs="+", default=[512, 256], help="max_num_batched_tokens")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    print(f"{options.num_seqs} sequences decode, a prompt of {options.prompt} tokens arrives; {options.rounds} rounds")
    columns = ("before p50", "during p50", "p99", "max", "implied", "first token")
    print(f"{'budget':<12}" + "".join(f"{column:>12}" for column in columns))
    for budget in options.budgets:
        gaps = asyncio.run(_measure(options, max_num_batched_tokens=budget))
        _print(str(budget), gaps, share=min(1.0, (budget - options.num_seqs) / options.prompt))
    whole = {"enable_chunked_prefill": False, "max_num_batched_tokens": _max_model_len(options) + options.num_seqs}
    _print("no chunks", asyncio.run(_measure(options, **whole)), share=1.0)


def _max_model_len(options: argparse.Namespace) -> int:
    return int(options.prompt + 64)


async def _measure(options: argparse.Namespace, **engine_options: Any) -> Gaps:
    optional = {"backend": options.backend, "tokenizer": options.tokenizer}
    async with AsyncLLM(
        options.model,
        max_num_seqs=options.num_seqs + 1,
        max_model_len=_max_model_len(options),
        enable_prefix_caching=False,
        **{name: value for name, value in optional.items() if value},
        **engine_options,
    ) as llm:
        gaps = Gaps()
        await _round(llm, options, Gaps(), seed=0)  # to warm up
        for seed in range(options.rounds):
            await _round(llm, options, gaps, seed + 1)
        assert llm.stats().num_preemptions == 0, "the KV cache is too small to measure this"
        return gaps


async def _round(llm: AsyncLLM, options: argparse.Namespace, gaps: Gaps, seed: int) -> None:
    """Adds one round's gaps. The streams are left as soon as the long prompt has its first token."""
    randomness = random.Random(seed)

    def prompt(length: int) -> list[int]:
        return [randomness.randrange(3, min(llm.model_info.vocab_size, 2000)) for _ in range(length)]

    gaps.alone.append(await _first_token_s(llm, prompt(options.prompt)))
    times: list[list[float]] = [[] for _ in range(options.num_seqs)]
    streams = [asyncio.ensure_future(_read(llm, prompt(options.context), seen)) for seen in times]
    while min(len(seen) for seen in times) < options.before:
        await asyncio.wait(streams, timeout=0.005)
        for stream in streams:
            if stream.done():
                stream.result()
                raise SystemExit("a stream ended before the prompt arrived: raise --prompt, which bounds its length")
    arrival_s = time.perf_counter()
    gaps.first_token.append(await _first_token_s(llm, prompt(options.prompt)))
    end_s = time.perf_counter()
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    start_s = max(seen[0] for seen in times)  # from here on all of them decode
    for seen in times:
        pairs = list(pairwise(seen))
        gaps.before += [b - a for a, b in pairs if a >= start_s and b <= arrival_s]
        gaps.during += [b - a for a, b in pairs if b > arrival_s and a < end_s]


async def _read(llm: AsyncLLM, prompt: list[int], times: list[float]) -> None:
    """Notes when each token came, until the model's length."""
    params = SamplingParams(
        temperature=0, max_tokens=None, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA
    )
    async for output in llm.generate(prompt, params):
        times += [time.perf_counter()] * sum(len(one.token_ids) for one in output.outputs)


async def _first_token_s(llm: AsyncLLM, prompt: list[int]) -> float:
    start_s = time.perf_counter()
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False)
    async for _ in llm.generate(prompt, params):
        pass
    return time.perf_counter() - start_s


def _print(name: str, gaps: Gaps, share: float) -> None:
    """share: of the long prompt, in one step."""
    before = statistics.median(gaps.before)
    during = sorted(gaps.during)
    cells = (
        before,
        statistics.median(during),
        during[math.ceil(0.99 * len(during)) - 1],
        during[-1],
        before + statistics.median(gaps.alone) * share,
        statistics.median(gaps.first_token),
    )
    print(f"{name:<12}" + "".join(f"{cell * 1e3:>12.1f}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
