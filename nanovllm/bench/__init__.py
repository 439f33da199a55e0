"""What `nanovllm bench` and `benchmarks/compare.py` measure: workloads, and the measuring of a loaded model.

`nanovllm.bench.serving` measures a server; it is imported by itself.
"""

from nanovllm.bench.latency import LatencyReport, measure_latency
from nanovllm.bench.throughput import ThroughputReport, measure_throughput
from nanovllm.bench.workload import WORKLOAD_NAMES, Workload, named_workload, uniform_workload

__all__ = [
    "WORKLOAD_NAMES",
    "LatencyReport",
    "ThroughputReport",
    "Workload",
    "measure_latency",
    "measure_throughput",
    "named_workload",
    "uniform_workload",
]
