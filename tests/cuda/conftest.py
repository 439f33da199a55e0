"""Everything here needs a CUDA device, with the kernels compiled for it."""

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def _needs_a_device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1: the kernels are interpreted, which takes tensors in host memory")
