"""Throughput of a loaded model: all requests of a workload at once, timed from the first to the last token.

In: an `LLM` and a workload. Out: a record of counts and seconds. Prints nothing.
"""

import time
from dataclasses import dataclass

from nanovllm.bench.workload import Workload
from nanovllm.llm import LLM
from nanovllm.resources import peak_memory_bytes
from nanovllm.sampling_params import SamplingParams

__all__ = ["ThroughputReport", "greedy_params", "measure_throughput", "run_workload"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputReport:
    """One run of a workload. num_cached_tokens: prompt tokens that the prefix cache saved computing.
    num_steps, num_preemptions: of this run. peak_memory_bytes: resident, of the process since it began; None where the
    system does not say."""

    workload: str
    seconds: float
    num_requests: int
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    num_steps: int
    num_preemptions: int
    peak_memory_bytes: int | None

    @property
    def output_tokens_per_s(self) -> float:
        return self.num_output_tokens / self.seconds

    @property
    def prompt_tokens_per_s(self) -> float:
        return self.num_prompt_tokens / self.seconds

    @property
    def total_tokens_per_s(self) -> float:
        return self.output_tokens_per_s + self.prompt_tokens_per_s


def measure_throughput(llm: LLM, workload: Workload, *, progress: bool | None = None) -> ThroughputReport:
    """Runs the workload once. Raises what `LLM.generate` raises."""
    before = llm.stats()
    start = time.perf_counter()
    token_ids = run_workload(llm, workload, progress=progress)
    seconds = time.perf_counter() - start
    after = llm.stats()
    return ThroughputReport(
        workload=workload.name,
        seconds=seconds,
        num_requests=len(workload.prompts),
        num_prompt_tokens=workload.num_prompt_tokens,
        num_output_tokens=sum(map(len, token_ids)),
        num_cached_tokens=after.prefix_cache_hits - before.prefix_cache_hits,
        num_steps=after.num_steps - before.num_steps,
        num_preemptions=after.num_preemptions - before.num_preemptions,
        peak_memory_bytes=peak_memory_bytes(),
    )


def run_workload(llm: LLM, workload: Workload, *, progress: bool | None = None) -> list[list[int]]:
    """The tokens that each request of the workload is continued by."""
    outputs = llm.generate(workload.prompts, greedy_params(workload.output_lens), progress=progress)
    return [output.outputs[0].token_ids for output in outputs]


def greedy_params(output_lens: list[int]) -> list[SamplingParams]:
    return [SamplingParams(temperature=0, max_tokens=length, ignore_eos=True) for length in output_lens]
