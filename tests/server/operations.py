"""What the tests of the server's operation share: its parts without a model, and a reader of /metrics."""

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from nanovllm import EngineStats
from nanovllm.server.admission import Admission
from nanovllm.server.metrics import Metrics
from nanovllm.server.rate_limits import RateLimits
from nanovllm.server.settings import ServerSettings


def make_metrics(stats: EngineStats | None = None, prefix: str = "nanovllm") -> Metrics:
    return Metrics(
        prefix=prefix,
        model_name="a-model",
        stats=lambda: stats or EngineStats(),
        max_model_len=1000,
        cache_config={"num_gpu_blocks": "7"},
    )


def make_admission(metrics: Metrics | None = None, **settings: Any) -> Admission:
    record = ServerSettings(**settings)
    return Admission(record, metrics or make_metrics(), RateLimits(record))


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """A scrape, by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def names_of(text: str) -> set[str]:
    return {name for name, _ in samples(text)}


def values(metrics: Metrics | str, name: str, label: str, prefix: str = "nanovllm") -> dict[str, float]:
    """One metric's values by one of its labels."""
    text = metrics if isinstance(metrics, str) else metrics.scrape().body.decode()
    return {
        dict(labels).get(label, ""): value
        for (found, labels), value in samples(text).items()
        if found == f"{prefix}:{name}"
    }


def value(metrics: Metrics | str, name: str, prefix: str = "nanovllm") -> float:
    """A metric that has one value."""
    (only,) = values(metrics, name, "", prefix).values()
    return only
