"""Our engine beside others on the same workloads, in one run: each loaded once, rounds in turn, medians and ratios.

    python -m benchmarks.compare --workload offline-48 single \\
        --engine nanovllm:int8=ours-int8 openvino:int8=openvino-int8 vllm:bf16=qwen2-0.5b

An engine is ADAPTER[:LABEL]=MODEL: benchmarks/peers/run_ADAPTER.py, run by PEERS/ADAPTER/bin/python where that exists
(otherwise by this Python), loads MODEL, a path inside the folder of models. docs/benchmarks.md tells how to install the
peers and how to make their models. Round k of a workload is the same for every engine and differs from round k - 1 in
its token ids alone. While one engine computes, the others are stopped.
"""

import argparse
import datetime
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.engine_process import EngineFailure, EngineProcess, Round
from benchmarks.results import Measurement, describe_machine, markdown_table, put_section
from nanovllm.bench import WORKLOAD_NAMES, Workload, named_workload
from nanovllm.resources import num_physical_cores

OURS = "nanovllm"
ADAPTERS = Path(__file__).with_name("peers")
RESULTS = Path(__file__).with_name("RESULTS.md")


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """name: adapter and label. command: of the adapter's process."""

    name: str
    command: Sequence[str]

    @property
    def is_ours(self) -> bool:
        return self.name.partition(":")[0] == OURS


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    specs = [engine_spec(text, options) for text in options.engine]
    workloads = {
        name: [
            named_workload(name, options.vocab_size, round_index=index)
            for index in range(options.warmups + options.rounds)
        ]
        for name in options.workload
    }
    with tempfile.TemporaryDirectory() as logs:
        tables, failures = compare(specs, workloads, options.warmups, Path(options.logs or logs), options.timeout)
    date = datetime.datetime.now(tz=datetime.UTC).date()
    command = f"python -m benchmarks.compare {shlex.join(sys.argv[1:] if argv is None else argv)}"
    counts = f"{options.warmups} to warm up, {options.rounds} measured"
    intro = f"{describe_machine()}. Rounds of each engine, in turn: {counts}."
    missing = [f"{name} is missing: it {failure}." for name, failure in failures.items()]
    body = "\n\n".join((intro, f"    {command}", *tables, *missing))
    print(f"\n{body}")
    if options.write:
        put_section(options.write, f"{options.title or ', '.join(options.workload)} ({date})", body)
    return 1 if failures else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", nargs="+", required=True, metavar="ADAPTER[:LABEL]=MODEL")
    parser.add_argument("--workload", nargs="+", default=["offline-48"], choices=WORKLOAD_NAMES)
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (default: 3)")
    parser.add_argument("--warmups", type=int, default=1, help="rounds before that do not count (default: 1)")
    parser.add_argument("--threads", type=int, default=num_physical_cores(), help="default: the physical cores")
    parser.add_argument("--vocab-size", type=int, default=151936, help="of the model (default: Qwen2's, 151936)")
    parser.add_argument("--option", action="append", default=[], metavar="ADAPTER[:LABEL].KEY=VALUE")
    environment = os.environ.get
    parser.add_argument("--peers", default=environment("NANOVLLM_BENCH_PEERS"), help="default: $NANOVLLM_BENCH_PEERS")
    parser.add_argument(
        "--models", default=environment("NANOVLLM_BENCH_MODELS"), help="default: $NANOVLLM_BENCH_MODELS"
    )
    parser.add_argument("--adapters", type=Path, default=ADAPTERS, help="folder of run_ADAPTER.py (default: ours)")
    parser.add_argument("--logs", help="a folder that keeps what the engines print")
    parser.add_argument(
        "--timeout", type=float, default=1800, help="seconds for loading and for a round (default: 1800)"
    )
    parser.add_argument(
        "--write", type=Path, nargs="?", const=RESULTS, help=f"put a section into a file ({RESULTS.name})"
    )
    parser.add_argument("--title", help="heading of that section, in place of the workloads")
    options = parser.parse_args(argv)
    if options.rounds < 1 or options.warmups < 0:
        parser.error("--rounds must be at least 1 and --warmups at least 0")
    return options


def engine_spec(text: str, options: argparse.Namespace) -> EngineSpec:
    """Of ADAPTER[:LABEL]=MODEL. Ends the program where that is not what was given, or there is no such adapter."""
    name, _, model = text.partition("=")
    adapter = name.partition(":")[0]
    script = options.adapters / f"run_{adapter}.py"
    if not model or not script.is_file():
        known = ", ".join(sorted(path.stem.removeprefix("run_") for path in options.adapters.glob("run_*.py")))
        sys.exit(f"--engine is {text!r}; it must be ADAPTER[:LABEL]=MODEL with one of the adapters {known}")
    python = Path(options.peers or "", adapter, "bin", "python")
    path = Path(options.models or "", model)
    command = [str(python) if options.peers and python.exists() else sys.executable, str(script)]
    command += ["--model", str(path if path.exists() else model), "--option", f"threads={options.threads}"]
    for setting in options.option:
        target, separator, key_value = setting.partition(".")
        if not separator or "=" not in key_value:
            sys.exit(f"--option is {setting!r}; it must be ADAPTER[:LABEL].KEY=VALUE")
        if target in (name, adapter):
            command += ["--option", key_value]
    return EngineSpec(name, command)


def compare(
    specs: Sequence[EngineSpec],
    workloads: Mapping[str, Sequence[Workload]],
    num_warmups: int,
    logs: Path,
    timeout_s: float,
) -> tuple[list[str], dict[str, str]]:
    """workloads: by name, one for each round. Out: a table for each workload, and by engine why it is missing: one that
    fails is left out from there on, and of that workload's table."""
    failures: dict[str, str] = {}
    tables = []
    with ExitStack() as stack:
        engines = {}
        for spec in specs:
            log = logs / f"{spec.name.replace(':', '-')}.log"
            with reported(spec.name, failures):
                engine = stack.enter_context(EngineProcess(spec.command, log, timeout_s=timeout_s))
                tell(f"{spec.name}: {engine.version}, loaded in {engine.load_s:.1f} s")
                engines[spec.name] = engine
        for name, rounds in workloads.items():
            times = run_rounds(name, engines, rounds, failures)
            measured = [
                Measurement(
                    spec.name, engines[spec.name].version, spec.is_ours, rounds[0], times[spec.name][num_warmups:]
                )
                for spec in specs
                if spec.name not in failures
            ]
            if measured:
                tables.append(markdown_table(measured))
    return tables, failures


def run_rounds(
    name: str, engines: Mapping[str, EngineProcess], rounds: Sequence[Workload], failures: dict[str, str]
) -> dict[str, list[Round]]:
    """Each round on one engine after the other. Out: the rounds by engine."""
    times: dict[str, list[Round]] = {engine: [] for engine in engines}
    for index, workload in enumerate(rounds):
        for engine in [one for one in engines if one not in failures]:
            with reported(engine, failures):
                times[engine].append(engines[engine].run(workload))
                tell(f"{name}, round {index}: {engine} {times[engine][-1].seconds:.2f} s")
    return times


@contextmanager
def reported(engine: str, failures: dict[str, str]) -> Iterator[None]:
    """Notes the failure of an engine, so that the others go on."""
    try:
        yield
    except EngineFailure as error:
        failures[engine] = str(error)
        tell(f"{engine} {error}")


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the engines, which are stopped, are ended, too
    sys.exit(main())
