"""nano-vllm's benchmark runs on a CPU, in sizes of a test."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SIZES = "--shape tiny --device cpu --num-seqs 4 --min-len 4 --max-len 20 --max-model-len 128"


def test_it_prints_rates_and_writes_a_profile(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/nano_vllm_bench.py", *SIZES.split(), "--profile", str(tmp_path / "trace")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    printed = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert printed.returncode == 0, printed.stderr
    found = re.search(r"(\d+) steps of ([\d.]+) ms, the host's part ([\d.]+) ms", printed.stdout)
    assert found is not None, printed.stdout
    num_steps, step_ms, host_ms = map(float, found.groups())
    assert num_steps >= 10, "a longest request of up to 20 tokens"
    assert 0 < host_ms < step_ms
    assert "tok/s" in printed.stdout
    assert "H200" not in printed.stdout, "a share of a device that is not here"
    assert (tmp_path / "trace").stat().st_size > 0
