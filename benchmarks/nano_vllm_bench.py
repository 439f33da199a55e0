"""nano-vllm's own benchmark on the torch backend: 256 requests of 100 to 1,024 tokens in and as many out, all at once.

    python benchmarks/nano_vllm_bench.py [--shape Qwen/Qwen3-0.6B] [--device cuda] [--enforce-eager] [--profile TRACE]
    python benchmarks/nano_vllm_bench.py --shape tiny --device cpu --num-seqs 8 --max-len 64 --min-len 8

Weights are random (`make_checkpoint.py`; --model takes a folder instead); lengths and ids are seeded; sampling is
nano-vllm's: temperature 0.6, past any end of sequence. Printed: output tokens per second; milliseconds of a step and of
the host's part of it, which is what is left when the waiting for the runner is taken off; and, on a CUDA device, the
share of what the memory bandwidth of one H200 would allow (36,000 tok/s for Qwen3-0.6B, 177,000 for Qwen2-0.5B).
--profile runs some decode steps once more under torch's profiler, prints where their time goes and writes a trace.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from make_checkpoint import write_folder

from nanovllm import EngineConfig, RequestOutputKind, SamplingParams
from nanovllm.batch import Batch, StepOutput
from nanovllm.engine.build import assemble_engine
from nanovllm.engine.engine import LLMEngine
from nanovllm.known_shapes import KNOWN_SHAPES
from nanovllm.plugins import ModelRunner, ModelSource
from nanovllm.plugins.interfaces import PendingStep
from nanovllm.plugins.manager import PluginManager

H200_FLOOR_TOKENS_PER_S = {"Qwen/Qwen3-0.6B": 36_000, "Qwen/Qwen2-0.5B-Instruct": 177_000}
TINY = {
    **KNOWN_SHAPES["Qwen/Qwen2-0.5B-Instruct"],
    "vocab_size": 8192,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "eos_token_id": 8191,
}
SHAPES = {**KNOWN_SHAPES, "tiny": TINY}
PROFILED_STEPS = 20


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.model
        if folder is None:
            folder = Path(temporary) / "model"
            write_folder(folder, SHAPES[options.shape], options.seed)
        runner, engine = _build(folder, options)
        _run(engine, [([1] * 10, 4)])  # whatever is compiled or allocated on first use
        requests = _requests(options, runner.model_info.vocab_size)
        runner.waiting_s = 0.0
        steps_before, start = engine.stats().num_steps, time.perf_counter()
        _run(engine, requests)
        seconds, num_steps = time.perf_counter() - start, engine.stats().num_steps - steps_before
        _print(options, runner, requests, seconds, num_steps)
        if options.profile is not None:
            _profile(engine, requests, options)
        engine.close()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), metavar="SHAPE", default="Qwen/Qwen3-0.6B")
    parser.add_argument("--model", type=Path, default=None, help="a checkpoint folder in place of random weights")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--enforce-eager", action="store_true")
    parser.add_argument("--torch-compile", action="store_true")
    parser.add_argument("--num-seqs", type=int, default=256)
    parser.add_argument("--min-len", type=int, default=100)
    parser.add_argument("--max-len", type=int, default=1024)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--max-num-batched-tokens", type=int, default=16_384)
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", type=Path, default=None, help="where a trace is written to")
    return parser.parse_args()


class TimedRunner(ModelRunner):
    """Another runner, and how long the engine has waited for it, in seconds."""

    def __init__(self, inner: ModelRunner) -> None:
        self.inner = inner
        self.waiting_s = 0.0
        self.overlaps: bool = getattr(inner, "overlaps", False)
        self.model_info = inner.model_info
        self.preferred_block_size = inner.preferred_block_size
        self.honours, self.kv = inner.honours, inner.kv

    def kv_bytes_per_block(self, block_size: int) -> int:
        return self.inner.kv_bytes_per_block(block_size)

    def kv_memory_bytes(self) -> int | None:
        return self.inner.kv_memory_bytes()

    def allocate_kv_cache(self, num_blocks: int, block_size: int) -> None:
        self.inner.allocate_kv_cache(num_blocks, block_size)

    def execute(self, batch: Batch) -> StepOutput:
        return self.submit(batch).result()

    def submit(self, batch: Batch) -> PendingStep:
        start = time.perf_counter()
        pending = self.inner.submit(batch)
        if not self.overlaps:  # the step has been computed by now
            self.waiting_s += time.perf_counter() - start
        return _TimedStep(self, pending)

    def close(self) -> None:
        self.inner.close()


class _TimedStep:
    def __init__(self, runner: TimedRunner, pending: PendingStep) -> None:
        self._runner = runner
        self._pending = pending

    def result(self) -> StepOutput:
        start = time.perf_counter()
        try:
            return self._pending.result()
        finally:
            self._runner.waiting_s += time.perf_counter() - start


def _build(folder: Path, options: argparse.Namespace) -> tuple[TimedRunner, LLMEngine]:
    config = EngineConfig(
        model=str(folder),
        backend="torch",
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_model_len=options.max_model_len,
        backend_options={
            "device": options.device,
            "dtype": options.dtype,
            "enforce_eager": options.enforce_eager,
            "torch_compile": options.torch_compile,
        },
    )
    plugins, source = PluginManager.discover(), ModelSource(str(folder), folder)
    runner = TimedRunner(plugins.select_model_runner(source, "torch").factory(source, config))
    tokenizer = plugins.select_tokenizer(source, None).factory(source)
    return runner, assemble_engine(runner, tokenizer, config)


Requests = list[tuple[list[int], int]]
"""Prompt and number of new tokens of each."""


def _requests(options: argparse.Namespace, vocab_size: int) -> Requests:
    draw = random.Random(options.seed)
    lens = [
        (draw.randint(options.min_len, options.max_len), draw.randint(options.min_len, options.max_len))
        for _ in range(options.num_seqs)
    ]
    return [([draw.randrange(min(vocab_size, 10_000)) for _ in range(prompt)], new) for prompt, new in lens]


def _run(engine: LLMEngine, requests: Requests) -> None:
    _add(engine, requests)
    while engine.has_unfinished_requests:
        engine.step()


def _add(engine: LLMEngine, requests: Requests) -> None:
    for i, (prompt, max_tokens) in enumerate(requests):
        params = SamplingParams(
            temperature=0.6, seed=i, max_tokens=max_tokens, ignore_eos=True, output_kind=RequestOutputKind.FINAL_ONLY
        )
        engine.add(engine.prepare(str(i), prompt, params))


def _print(
    options: argparse.Namespace, runner: TimedRunner, requests: Requests, seconds: float, num_steps: int
) -> None:
    device, num_tokens = runner.model_info.device, sum(max_tokens for _, max_tokens in requests)
    rate = num_tokens / seconds
    print(f"{options.model or options.shape} on {device}, {runner.model_info.dtype}, {len(requests)} requests")
    print(f"  {num_tokens:,} output tokens in {seconds:.2f} s: {rate:,.0f} tok/s")
    print(f"  {num_steps} steps of {seconds / num_steps * 1e3:.2f} ms, ", end="")
    print(f"the host's part {(seconds - runner.waiting_s) / num_steps * 1e3:.2f} ms")
    floor = H200_FLOOR_TOKENS_PER_S.get(options.shape)
    if device == "cuda" and floor is not None and options.model is None:
        print(f"  {rate / floor:.0%} of what the memory bandwidth of one H200 allows ({floor:,} tok/s)")


def _profile(engine: LLMEngine, requests: Requests, options: argparse.Namespace) -> None:
    """Some decode steps, once all prompts have been computed."""
    from torch.profiler import ProfilerActivity, profile

    _add(engine, [(prompt, max(max_tokens, 2 * PROFILED_STEPS)) for prompt, max_tokens in requests])
    while engine.stats().num_waiting:
        engine.step()
    activities = [ProfilerActivity.CPU]
    order = "self_cpu_time_total"
    if engine.model_info.device == "cuda":
        activities.append(ProfilerActivity.CUDA)
        order = "self_cuda_time_total"
    with profile(activities=activities) as record:
        for _ in range(PROFILED_STEPS):
            engine.step()
    table: Any = record.key_averages()
    print(table.table(sort_by=order, row_limit=25))
    record.export_chrome_trace(str(options.profile))
    print(f"the trace is in {options.profile}; open it at https://ui.perfetto.dev")


if __name__ == "__main__":
    main()
