"""`nanovllm bench` as a user runs it, on the mock backend and on the model in the box."""

import json
import subprocess
import sys
from typing import Any

import pytest

MOCK = ("--backend", "mock", "--model", "none")
SMALL = ("--num-prompts", "3", "--input-len", "20", "--output-len", "5")
MODELS = pytest.mark.parametrize("model", [MOCK, ("--model", "tiny-chat")], ids=["mock", "tiny-chat"])


def bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "nanovllm", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def report(*arguments: str) -> dict[str, Any]:
    run = bench(*arguments, "--json")
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@MODELS
def test_throughput_counts_every_token_and_divides_by_the_time(model: tuple[str, ...]) -> None:
    found = report("throughput", *model, *SMALL)
    assert (found["num_requests"], found["num_prompt_tokens"], found["num_output_tokens"]) == (3, 60, 15)
    assert found["output_tokens_per_s"] == pytest.approx(15 / found["seconds"])
    assert found["prompt_tokens_per_s"] == pytest.approx(60 / found["seconds"])
    assert found["total_tokens_per_s"] == pytest.approx(75 / found["seconds"])
    assert found["num_steps"] == 5
    assert found["num_cached_tokens"] == found["num_preemptions"] == 0
    assert found["peak_memory_bytes"] is None or found["peak_memory_bytes"] > 2**20


def test_a_known_workload_runs_by_its_name_and_is_the_default() -> None:
    assert report("throughput", *MOCK, "--workload", "single")["num_output_tokens"] == 256
    assert report("throughput", *MOCK)["num_output_tokens"] == 3966


def test_a_pool_that_is_too_small_shows_as_preemptions() -> None:
    blocks = ("--max-model-len", "64", "--block-size", "8", "--num-kv-blocks", "8")
    found = report("throughput", *MOCK, *blocks, "--num-prompts", "3", "--input-len", "20", "--output-len", "40")
    assert found["num_output_tokens"] == 120
    assert found["num_preemptions"] > 0


def test_a_shared_prefix_shows_as_cached_tokens() -> None:
    found = report("throughput", *MOCK, "--workload", "shared-prefix", "--block-size", "8")
    assert found["num_cached_tokens"] >= 63 * 1000
    again = report("throughput", *MOCK, "--workload", "shared-prefix", "--block-size", "8", "--no-prefix-caching")
    assert again["num_cached_tokens"] == 0


@MODELS
def test_latency_tells_the_first_token_from_the_others(model: tuple[str, ...]) -> None:
    sizes = ("--batch-size", "2", "--input-len", "16", "--output-len", "6", "--num-iters", "3")
    found = report("latency", *model, *sizes)
    assert found["num_iterations"] == 3
    for name in ("time_to_first_token", "inter_token", "iteration"):
        times = found[name]
        assert 0 < times["p50_s"] <= times["p90_s"] <= times["p99_s"]
    whole = found["time_to_first_token"]["mean_s"] + 5 * found["inter_token"]["mean_s"]
    assert whole <= found["iteration"]["mean_s"] * 1.001


def test_one_new_token_has_nothing_between_tokens() -> None:
    assert report("latency", *MOCK, "--output-len", "1", "--num-iters", "1")["inter_token"] is None


def test_reports_are_readable_without_json() -> None:
    throughput, latency = bench("throughput", *MOCK, *SMALL), bench("latency", *MOCK, "--num-iters", "1")
    assert throughput.stdout.startswith("3 x 20 in, 5 out: 3 requests\n")
    assert "60 of prompts, 15 new" in throughput.stdout
    assert "preemptions" in throughput.stdout
    assert "time to first token" in latency.stdout
    assert "p99" in latency.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("throughput", *MOCK, "--num-prompts", "3"), "--output-len"),
        (("throughput", *MOCK, *SMALL, "--workload", "single"), "either --workload"),
        (("throughput", *MOCK, "--workload", "nosuch"), "offline-48"),
        (("throughput", *MOCK, *SMALL[:-1], "0"), "output_len is 0"),
        (("latency", *MOCK, "--num-iters", "0"), "num_iterations is 0"),
        (("latency", *MOCK, "--batch-size", "0"), "num_prompts is 0"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(arguments: tuple[str, ...], message: str) -> None:
    run = bench(*arguments)
    assert run.returncode == 2
    assert message in run.stderr
    assert "Traceback" not in run.stderr
