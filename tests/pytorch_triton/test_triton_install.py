"""The kernels compile for CUDA without a device, and their absence is told in words."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED_BYTES = 99 * 1024  # what a block may have on sm_86 and sm_89, the least of sm_80 to sm_90
SPILLED_BYTES = 64
KERNELS = {"attend", "gate", "pick_tokens", "reduce_splits", "rms_norm", "rotate_and_store", "sum_chunks"}


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed: no wheel of it here")
@pytest.mark.parametrize("capability", [80, 90])
def test_every_kernel_compiles_to_machine_code_that_fits(capability: int, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    printed = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compile_kernels.py")), str(capability)],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert printed.returncode == 0, printed.stderr
    compiled = [json.loads(line) for line in printed.stdout.splitlines()]
    assert {one["kernel"] for one in compiled} == KERNELS
    assert len(compiled) == 28
    for one in compiled:
        assert one["target"].startswith(f"sm_{capability}"), one
        assert one["shared_bytes"] <= SHARED_BYTES, one
        assert one["spilled_bytes"] <= SPILLED_BYTES, one
        assert one["has_async_copies"] == (one["kernel"] == "attend"), one


def test_without_triton_the_package_imports_and_a_launch_says_what_to_install() -> None:
    program = """
import sys
sys.modules["triton"] = None  # what Python does where there is none
import torch
from backends.pytorch.triton_kernels import rotate_and_store
from nanovllm.errors import ConfigError
row, pool = torch.zeros(1, 8), torch.zeros(1, 16, 1, 8)
try:
    rotate_and_store(row, row, row, pool, pool, torch.zeros(1).int(), num_heads=1)
except ConfigError as error:
    print(error)
"""
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "pip install triton" in printed
    assert "device='cpu'" in printed
