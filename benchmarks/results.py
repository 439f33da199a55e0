"""Results of a comparison: medians and ratios of rounds, as a table and as a section of a Markdown file.

In: rounds by engine and workload. Out: text. Runs nothing.
"""

import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.engine_process import Round
from nanovllm.bench import Workload
from nanovllm.resources import num_physical_cores

__all__ = ["Measurement", "best_peer", "describe_machine", "markdown_table", "put_section"]


@dataclass(frozen=True, slots=True)
class Measurement:
    """Rounds of one engine on one workload, at least one. rates: counted tokens per second of each round."""

    name: str
    version: str
    is_ours: bool
    workload: Workload
    rounds: Sequence[Round]

    @property
    def rates(self) -> list[float]:
        count = self.workload.num_prompt_tokens
        if self.workload.counted == "output":
            count = self.workload.num_output_tokens
        return [count / one.seconds for one in self.rounds]

    @property
    def median(self) -> float:
        return statistics.median(self.rates)

    @property
    def peak_memory_bytes(self) -> int:
        return max(one.peak_memory_bytes for one in self.rounds)


def best_peer(measurements: Sequence[Measurement]) -> Measurement | None:
    """The fastest engine that is not ours; None where there is none."""
    return max((one for one in measurements if not one.is_ours), key=lambda one: one.median, default=None)


def markdown_table(measurements: Sequence[Measurement]) -> str:
    """One workload's, the fastest engine first. measurements: at least one, all of one workload."""
    best, workload = best_peer(measurements), measurements[0].workload
    lines = [
        f"**{workload.name}**: {len(workload.prompts)} requests, {workload.num_prompt_tokens:,} prompt tokens, "
        f"{workload.num_output_tokens:,} new tokens",
        "",
        f"| engine | version | {workload.counted} tok/s, median | lowest - highest | of the best peer | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for one in sorted(measurements, key=lambda one: -one.median):
        ratio = "-" if best is None else f"{one.median / best.median:.2f}"
        cells = (
            *(one.name, one.version, f"{one.median:,.1f}", f"{min(one.rates):,.1f} - {max(one.rates):,.1f}"),
            *(ratio, f"{one.peak_memory_bytes / 2**30:.1f} GiB"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def describe_machine() -> str:
    """Processor, cores, memory and system, as far as the system tells."""
    parts = [_first("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()]
    parts.append(f"{num_physical_cores()} cores")
    memory = _first("/proc/meminfo", "MemTotal")
    if memory:
        parts.append(f"{int(memory.split()[0]) / 2**20:.0f} GiB")
    return ", ".join((*parts, platform.system(), f"Python {platform.python_version()}"))


def _first(path: str, key: str) -> str | None:
    file = Path(path)
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)


def put_section(path: Path, heading: str, body: str) -> None:
    """Writes `## heading` and the body into a Markdown file: in the place of the section of that heading, or last."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, *sections = f"\n{text}".split("\n## ")
    kept = [section.strip() for section in sections]
    new = f"{heading}\n\n{body}".strip()
    places = [i for i, section in enumerate(kept) if section.splitlines()[0] == heading]
    if places:
        kept[places[0]] = new
    else:
        kept.append(new)
    parts = [before.strip(), *(f"## {section}" for section in kept)]
    path.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
