"""Steps run up to what they send to the host on a device that is not there (`far_device.py`): so nothing in them waits
for a device's numbers or mixes memory of host and device, and what graphs capture can be captured."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nanovllm.testing import tiny_config, write_checkpoint
from tests.architectures.family_configs import CASES

ROOT = Path(__file__).parents[2]
STATIC = {case.name: case.config for case in CASES if "moe" not in case.name}
"""Families but for mixtures of experts, for which the host has to know how many tokens each expert gets."""

MOST_BESIDE = 40


@pytest.mark.parametrize(
    ("dtype", "configs"),
    [("bfloat16", STATIC), ("float32", {"few": tiny_config(), "many": tiny_config(num_hidden_layers=5)})],
    ids=["families in bfloat16", "depths in float32"],
)
def test_up_to_its_results_a_step_reads_nothing_back_and_a_graph_can_hold_its_body(
    tmp_path: Path, dtype: str, configs: dict[str, dict[str, object]]
) -> None:
    folders = [write_checkpoint(tmp_path / name, config) for name, config in configs.items()]
    counts = printed_by("separate_device.py", dtype, *folders)
    assert [count["model"] for count in counts] == list(configs)
    for count in counts:
        assert count["in_graph"] > 0
        assert count["launches"] > 0
        assert count["beside"] <= MOST_BESIDE, "operations beside the graph, which the host queues in every decode step"
    if "few" in configs:
        few, many = counts
        assert few["beside"] == many["beside"]
        assert few["in_graph"] < many["in_graph"]


def test_after_the_start_no_step_needs_a_kernel_that_was_not_compiled(tmp_path: Path) -> None:
    heads = {"num_attention_heads": 14, "num_key_value_heads": 2, "head_dim": 64}  # of Qwen2-0.5B
    config = tiny_config(num_hidden_layers=1, hidden_size=64, max_position_embeddings=4096, **heads)
    for counts in printed_by("warmed_kernels.py", write_checkpoint(tmp_path / "model", config)):
        assert not any(counts["missing"].values()), counts["missing"]
        assert counts["used"] > 10


def printed_by(program: str, *arguments: object) -> list[dict[str, Any]]:
    """Its lines. A process of its own, since torch keeps the kind of device for good."""
    path = Path(__file__).with_name(program)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "error", str(path), *map(str, arguments)]
    printed = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert printed.returncode == 0, printed.stderr
    return [json.loads(line) for line in printed.stdout.splitlines()]
