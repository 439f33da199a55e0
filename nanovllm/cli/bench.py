"""`nanovllm bench throughput | latency | serve`: how fast a model runs here, or what users of a server see; on random
prompts, decoded greedily."""

import argparse
import asyncio
import dataclasses
import json
import math
import os
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import get_args

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
from nanovllm.bench.http_events import ServerUrl
from nanovllm.bench.latency import Percentiles
from nanovllm.bench.serving import Endpoint, Load, first_model, measure_serving
from nanovllm.bench.serving_report import ServingReport
from nanovllm.cli.options import add_engine_options, load_llm
from nanovllm.errors import BackendError, ConfigError

__all__ = ["add_parser", "print_serving"]

_SIZES = ("num_prompts", "input_len", "output_len")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("bench", help="measure speed", description=__doc__)
    kinds = parser.add_subparsers(title="what to measure", required=True, metavar="KIND")
    _add_throughput(kinds)
    _add_latency(kinds)
    _add_serve(kinds)


def _add_throughput(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "tokens per second of many requests that arrive together"
    parser = kinds.add_parser("throughput", help=text, description=text)
    _add_sizes(parser)
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


def _add_serve(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "what users of a server see: tokens per second, time to first token and between tokens"
    parser = kinds.add_parser("serve", help=text, description=text + "; any server with OpenAI's API.")
    parser.add_argument("--base-url", default="http://127.0.0.1:8000", metavar="URL", help="default: %(default)s")
    parser.add_argument("--api-key", metavar="KEY", help="default: the environment's OPENAI_API_KEY, if it is set")
    parser.add_argument("--model", metavar="NAME", help="as the server names it (default: its first)")
    parser.add_argument("--endpoint", choices=get_args(Endpoint), default="completions", help="default: %(default)s")
    _add_sizes(parser)
    parser.add_argument(
        "--request-rate", type=float, default=math.inf, metavar="R", help="a second, Poisson (default: inf, at once)"
    )
    parser.add_argument("--max-concurrency", type=int, metavar="N", help="under way at once (default: no limit)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of prompts and arrivals (default: 0)")
    parser.add_argument("--vocab-size", type=int, default=1000, metavar="N", help="token ids below (default: 1000)")
    parser.add_argument(
        "--ignore-eos", action=argparse.BooleanOptionalAction, default=True, help="ask for the full length (default)"
    )
    parser.add_argument("--timeout", type=float, default=600.0, metavar="S", help="of a request (default: 600)")
    parser.add_argument("--num-warmups", type=int, default=1, metavar="N", help="requests before (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there, too")
    parser.set_defaults(run=_run_serve)


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workload", choices=WORKLOAD_NAMES, help="one of a known size (default: offline-48, or the sizes given)"
    )
    parser.add_argument("--num-prompts", type=int, metavar="N", help="requests")
    parser.add_argument("--input-len", type=int, metavar="N", help="tokens of each prompt")
    parser.add_argument("--output-len", type=int, metavar="N", help="tokens that each prompt is continued by")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workload-seed", type=int, default=0, metavar="N", help="of the token ids (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    add_engine_options(parser)


def _run_throughput(options: argparse.Namespace) -> None:
    _workload(options, 2, seed=0)  # a mistake in the sizes is told before the model is loaded
    with load_llm(options) as llm:
        measure_throughput(llm, uniform_workload(1, 16, 2, llm.model_info.vocab_size, round_index=-1), progress=False)
        workload = _workload(options, llm.model_info.vocab_size, seed=options.workload_seed)
        report = measure_throughput(llm, workload, progress=False if options.quiet or options.json else None)
    if options.json:
        rates = {name: getattr(report, name) for name in _RATES}
        print(json.dumps({**dataclasses.asdict(report), **rates}, indent=2))
    else:
        _print_throughput(report)


def _workload(options: argparse.Namespace, vocab_size: int, *, seed: int) -> Workload:
    sizes = {name: getattr(options, name) for name in _SIZES}
    if all(size is None for size in sizes.values()):
        return named_workload(options.workload or "offline-48", vocab_size, seed=seed)
    if options.workload is not None or None in sizes.values():
        raise ConfigError("give either --workload, or all of --num-prompts, --input-len and --output-len.")
    return uniform_workload(**sizes, vocab_size=vocab_size, seed=seed)


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


def _run_serve(options: argparse.Namespace) -> None:
    report = asyncio.run(_serve_report(options))
    print_serving(report)
    if options.json is not None:
        rates = {
            name: getattr(report, name) for name in ("requests_per_s", "output_tokens_per_s", "total_tokens_per_s")
        }
        text = json.dumps({**dataclasses.asdict(report), **rates}, indent=2)
        try:
            options.json.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--json is {options.json}, which cannot be written: {error.strerror}.") from error
    if report.num_failed:
        raise BackendError(f"{report.num_failed} of {report.num_requests} requests failed.")


async def _serve_report(options: argparse.Namespace) -> ServingReport:
    if options.vocab_size < 1:
        raise ConfigError(f"--vocab-size is {options.vocab_size}; it must be at least 1.")
    url = ServerUrl.parse(options.base_url, api_key=options.api_key or os.environ.get("OPENAI_API_KEY") or None)
    workload = _workload(options, options.vocab_size, seed=options.seed)
    load = Load(
        model=options.model or "",
        endpoint=options.endpoint,
        request_rate=options.request_rate,
        max_concurrency=options.max_concurrency,
        ignore_eos=options.ignore_eos,
        timeout_s=options.timeout,
        seed=options.seed,
    )
    if options.model is None:  # asked for when everything else is known to be right
        load = dataclasses.replace(load, model=await first_model(url))
    return await measure_serving(url, workload, load, num_warmups=options.num_warmups)


_BUSY_CLIENT = 0.8
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
    _print_percentiles(
        [
            ("time to first token", report.time_to_first_token),
            ("between tokens", report.inter_token),
            ("whole iteration", report.iteration),
        ]
    )


def print_serving(report: ServingReport) -> None:
    print(f"{report.workload}: {report.num_requests} requests, {report.num_failed} failed, {report.seconds:.2f} s")
    for name, count in report.failures.items():
        print(f"  {count} x {name}: {report.failure_details[name]}")
    new = f"{report.num_output_tokens:,} new of {report.num_asked_tokens:,} asked for"
    events = f" ({report.num_uncounted} answers counted in events)" if report.num_uncounted else ""
    print(f"  tokens      {report.num_prompt_tokens:,} of prompts, {new}{events}")
    print(f"  requests    {report.requests_per_s:10.2f} /s")
    print(f"  output      {report.output_tokens_per_s:10.1f} tok/s")
    print(f"  total       {report.total_tokens_per_s:10.1f} tok/s")
    busy = ": this client may be what was measured" if report.client_cpu_share > _BUSY_CLIENT else ""
    print(f"  client      {report.client_cpu_share:10.0%} of a core{busy}")
    print("  milliseconds")
    _print_percentiles(
        [
            ("time to first token", report.time_to_first_token),
            ("per token after it", report.time_per_output_token),
            ("between events", report.inter_token),
            ("end to end", report.end_to_end),
        ]
    )


def _print_percentiles(rows: Seq[tuple[str, Percentiles | None]]) -> None:
    print(f"  {'':<20}{'mean':>10}{'p50':>10}{'p90':>10}{'p99':>10}")
    for name, times in rows:
        if times is not None:
            cells = (times.mean_s, times.p50_s, times.p90_s, times.p99_s)
            print(f"  {name:<20}" + "".join(f"{1e3 * cell:10.2f}" for cell in cells))
