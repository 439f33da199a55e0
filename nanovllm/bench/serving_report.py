"""ServingReport: what many requests to a server came to.

In: the record of each request. Out: counts, rates and percentiles. Knows nothing about HTTP.
"""

from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from nanovllm.bench.latency import Percentiles
from nanovllm.bench.workload import Workload

__all__ = ["RequestRecord", "ServingReport", "serving_report"]


@dataclass(slots=True)
class RequestRecord:
    """One request, in seconds of one clock.

    first_s, last_s: when the first and the last event with text came. end_s: the end of the answer. gaps_s: between
    events with text. num_prompt_tokens, num_output_tokens: what the server counted; None where it did not tell.
    num_events: those with text. failure, detail: why it is no answer: a few words, and what there is to say about it.
    """

    start_s: float
    first_s: float | None = None
    last_s: float | None = None
    end_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    num_prompt_tokens: int | None = None
    num_output_tokens: int | None = None
    num_events: int = 0
    failure: str | None = None
    detail: str = ""

    def see_text(self, now_s: float) -> None:
        """Takes note of an event that brought text."""
        self.num_events += 1
        if self.last_s is None:
            self.first_s = now_s
        else:
            self.gaps_s.append(now_s - self.last_s)
        self.last_s = now_s

    @property
    def num_tokens(self) -> int:
        """New tokens; where the server did not count them, events."""
        return self.num_events if self.num_output_tokens is None else self.num_output_tokens

    @property
    def per_token_s(self) -> float | None:
        """Mean time of a token after the first."""
        if self.first_s is None or self.last_s is None or self.num_tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.num_tokens - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingReport:
    """seconds: from the first request to the end of the last. Tokens and times are of the requests that succeeded.

    num_prompt_tokens, num_output_tokens: as the server counted them; num_uncounted: requests of which it did not tell,
    whose output is counted in events. num_asked_tokens: output that all requests together asked for. failures: requests
    by what went wrong; failure_details: an example of each. time_to_first_token, end_to_end: from when the connection
    was opened. time_per_output_token: of each request, the mean after its first token. inter_token: between two events,
    each of which may bring several tokens. None where no request has one. client_cpu_share: processor time of this
    process per second; near 1 it is the client that is measured.
    """

    workload: str
    seconds: float
    num_requests: int
    num_succeeded: int
    num_prompt_tokens: int
    num_output_tokens: int
    num_asked_tokens: int
    num_uncounted: int
    failures: dict[str, int]
    failure_details: dict[str, str]
    time_to_first_token: Percentiles | None
    time_per_output_token: Percentiles | None
    inter_token: Percentiles | None
    end_to_end: Percentiles | None
    client_cpu_share: float

    @property
    def num_failed(self) -> int:
        return self.num_requests - self.num_succeeded

    @property
    def requests_per_s(self) -> float:
        return self.num_succeeded / self.seconds

    @property
    def output_tokens_per_s(self) -> float:
        return self.num_output_tokens / self.seconds

    @property
    def total_tokens_per_s(self) -> float:
        return (self.num_prompt_tokens + self.num_output_tokens) / self.seconds


def serving_report(
    workload: Workload, records: Seq[RequestRecord], *, seconds: float, client_cpu_share: float
) -> ServingReport:
    """records: one for each request of the workload, succeeded or not."""
    good = [record for record in records if record.failure is None]
    failures = Counter(record.failure for record in records if record.failure is not None)
    return ServingReport(
        workload=workload.name,
        seconds=seconds,
        num_requests=len(records),
        num_succeeded=len(good),
        num_prompt_tokens=sum(record.num_prompt_tokens or 0 for record in good),
        num_output_tokens=sum(record.num_tokens for record in good),
        num_asked_tokens=workload.num_output_tokens,
        num_uncounted=sum(record.num_output_tokens is None for record in good),
        failures=dict(failures.most_common()),
        failure_details={record.failure: record.detail for record in records if record.failure is not None},
        time_to_first_token=_percentiles(_since_start(record, record.first_s) for record in good),
        time_per_output_token=_percentiles(record.per_token_s for record in good),
        inter_token=_percentiles(gap for record in good for gap in record.gaps_s),
        end_to_end=_percentiles(_since_start(record, record.end_s) for record in good),
        client_cpu_share=client_cpu_share,
    )


def _since_start(record: RequestRecord, moment_s: float | None) -> float | None:
    return None if moment_s is None else moment_s - record.start_s


def _percentiles(times_s: Iterable[float | None]) -> Percentiles | None:
    known = [time_s for time_s in times_s if time_s is not None]
    return Percentiles.of(known) if known else None
