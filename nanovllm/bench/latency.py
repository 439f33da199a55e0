"""Latency of a loaded model: requests that arrive together, watched token by token.

In: an `LLM`, sizes and a number of iterations. Out: percentiles over all iterations. Prints nothing.
"""

import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import numpy as np

from nanovllm.bench.throughput import greedy_params
from nanovllm.bench.workload import Workload, uniform_workload
from nanovllm.errors import ConfigError
from nanovllm.llm import LLM
from nanovllm.sampling_params import RequestOutputKind

__all__ = ["LatencyReport", "Percentiles", "measure_latency"]


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of a set of times, in seconds."""

    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float

    @classmethod
    def of(cls, times_s: Seq[float]) -> "Percentiles":
        """times_s: at least one."""
        return cls(float(np.mean(times_s)), *(float(value) for value in np.percentile(times_s, (50, 90, 99))))


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyReport:
    """time_to_first_token: of every request, from the arrival of all. inter_token: between two outputs of a request,
    shared out over the tokens that the later one brought; None where each request has one token. iteration: from
    arrival to the last token of all."""

    workload: str
    num_iterations: int
    time_to_first_token: Percentiles
    inter_token: Percentiles | None
    iteration: Percentiles


@dataclass(frozen=True, slots=True)
class _Times:
    """Of one iteration, in seconds."""

    first_tokens_s: list[float]
    between_tokens_s: list[float]
    total_s: float


def measure_latency(
    llm: LLM,
    batch_size: int,
    input_len: int,
    output_len: int,
    *,
    num_iterations: int = 10,
    num_warmups: int = 2,
    seed: int = 0,
) -> LatencyReport:
    """Runs num_warmups + num_iterations batches, each with prompts of its own, so that none is in the prefix cache.

    Raises `ConfigError` for sizes below 1 and what `LLM.stream` raises.
    """
    if num_iterations < 1 or num_warmups < 0:
        raise ConfigError(
            f"num_iterations is {num_iterations} and num_warmups {num_warmups}; at least 1 and 0 are needed."
        )
    times = []
    for index in range(num_warmups + num_iterations):
        workload = uniform_workload(
            batch_size, input_len, output_len, llm.model_info.vocab_size, seed=seed, round_index=index
        )
        times.append(_watch(llm, workload))
    measured = times[num_warmups:]
    between = [seconds for one in measured for seconds in one.between_tokens_s]
    return LatencyReport(
        workload=workload.name,
        num_iterations=num_iterations,
        time_to_first_token=Percentiles.of([seconds for one in measured for seconds in one.first_tokens_s]),
        inter_token=Percentiles.of(between) if between else None,
        iteration=Percentiles.of([one.total_s for one in measured]),
    )


def _watch(llm: LLM, workload: Workload) -> _Times:
    params = [replace(param, output_kind=RequestOutputKind.DELTA) for param in greedy_params(workload.output_lens)]
    last: dict[str, float] = {}  # by request id: when its latest output came
    first_tokens, between_tokens = [], []
    start = time.perf_counter()
    for output in llm.stream(workload.prompts, params):
        now = time.perf_counter()
        num_tokens = len(output.outputs[0].token_ids)
        if not num_tokens:
            continue
        if output.request_id in last:
            between_tokens += [(now - last[output.request_id]) / num_tokens] * num_tokens
        else:
            first_tokens.append(now - start)
        last[output.request_id] = now
    return _Times(first_tokens, between_tokens, time.perf_counter() - start)
