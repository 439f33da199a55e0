"""`nanovllm bench throughput | latency`: how fast a model runs here, on random token ids, decoded greedily."""

import argparse
import dataclasses
import json

from nanovllm.bench import (
    WORKLOAD_NAMES,
    LatencyReport,
    ThroughputReport,
    Workload,
    measure_latency,
    measure_throughput,
    named_workload,
    uniform_workload,
)
from nanovllm.bench.latency import Percentiles
from nanovllm.cli.options import add_engine_options, load_llm
from nanovllm.errors import ConfigError

__all__ = ["add_parser"]

_SIZES = ("num_prompts", "input_len", "output_len")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("bench", help="measure speed", description=__doc__)
    kinds = parser.add_subparsers(title="what to measure", required=True, metavar="KIND")
    _add_throughput(kinds)
    _add_latency(kinds)


def _add_throughput(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "tokens per second of many requests that arrive together"
    parser = kinds.add_parser("throughput", help=text, description=text)
    parser.add_argument(
        "--workload", choices=WORKLOAD_NAMES, help="one of a known size (default: offline-48, or the sizes given)"
    )
    parser.add_argument("--num-prompts", type=int, metavar="N", help="requests")
    parser.add_argument("--input-len", type=int, metavar="N", help="tokens of each prompt")
    parser.add_argument("--output-len", type=int, metavar="N", help="tokens that each prompt is continued by")
    parser.add_argument("--quiet", action="store_true", help="no progress line")
    parser.set_defaults(run=_run_throughput)
    _add_common(parser)


def _add_latency(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "time to the first token, between tokens, and to the last, of requests that arrive together"
    parser = kinds.add_parser("latency", help=text, description=text)
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="requests (default: 1)")
    parser.add_argument("--input-len", type=int, default=128, metavar="N", help="prompt tokens of each (default: 128)")
    parser.add_argument("--output-len", type=int, default=64, metavar="N", help="new tokens of each (default: 64)")
    parser.add_argument("--num-iters", type=int, default=10, metavar="N", help="batches measured (default: 10)")
    parser.add_argument("--num-iters-warmup", type=int, default=2, metavar="N", help="batches before (default: 2)")
    parser.set_defaults(run=_run_latency)
    _add_common(parser)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workload-seed", type=int, default=0, metavar="N", help="of the token ids (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    add_engine_options(parser)


def _run_throughput(options: argparse.Namespace) -> None:
    _workload(options, 2)  # a mistake in the sizes is told before the model is loaded
    with load_llm(options) as llm:
        measure_throughput(llm, uniform_workload(1, 16, 2, llm.model_info.vocab_size, round_index=-1), progress=False)
        workload = _workload(options, llm.model_info.vocab_size)
        report = measure_throughput(llm, workload, progress=False if options.quiet or options.json else None)
    if options.json:
        rates = {name: getattr(report, name) for name in _RATES}
        print(json.dumps({**dataclasses.asdict(report), **rates}, indent=2))
    else:
        _print_throughput(report)


def _workload(options: argparse.Namespace, vocab_size: int) -> Workload:
    sizes = {name: getattr(options, name) for name in _SIZES}
    if all(size is None for size in sizes.values()):
        return named_workload(options.workload or "offline-48", vocab_size, seed=options.workload_seed)
    if options.workload is not None or None in sizes.values():
        raise ConfigError("give either --workload, or all of --num-prompts, --input-len and --output-len.")
    return uniform_workload(**sizes, vocab_size=vocab_size, seed=options.workload_seed)


def _run_latency(options: argparse.Namespace) -> None:
    with load_llm(options) as llm:
        report = measure_latency(
            llm,
            options.batch_size,
            options.input_len,
            options.output_len,
            num_iterations=options.num_iters,
            num_warmups=options.num_iters_warmup,
            seed=options.workload_seed,
        )
    if options.json:
        print(json.dumps(dataclasses.asdict(report), indent=2))
    else:
        _print_latency(report)


_RATES = ("output_tokens_per_s", "prompt_tokens_per_s", "total_tokens_per_s")


def _print_throughput(report: ThroughputReport) -> None:
    cached = f" ({report.num_cached_tokens:,} from the prefix cache)" if report.num_cached_tokens else ""
    print(f"{report.workload}: {report.num_requests} requests")
    print(f"  tokens      {report.num_prompt_tokens:,} of prompts{cached}, {report.num_output_tokens:,} new")
    print(f"  output      {report.output_tokens_per_s:10.1f} tok/s")
    print(f"  prompt      {report.prompt_tokens_per_s:10.1f} tok/s")
    print(f"  total       {report.total_tokens_per_s:10.1f} tok/s")
    print(f"  time        {report.seconds:10.2f} s in {report.num_steps} steps, {report.num_preemptions} preemptions")
    if report.peak_memory_bytes is not None:
        print(f"  peak memory {report.peak_memory_bytes / 2**20:10.0f} MiB")


def _print_latency(report: LatencyReport) -> None:
    print(f"{report.workload}: {report.num_iterations} iterations; milliseconds")
    print(f"  {'':<20}{'mean':>10}{'p50':>10}{'p90':>10}{'p99':>10}")
    rows: list[tuple[str, Percentiles | None]] = [
        ("time to first token", report.time_to_first_token),
        ("between tokens", report.inter_token),
        ("whole iteration", report.iteration),
    ]
    for name, times in rows:
        if times is not None:
            cells = (times.mean_s, times.p50_s, times.p90_s, times.p99_s)
            print(f"  {name:<20}" + "".join(f"{1e3 * cell:10.2f}" for cell in cells))
