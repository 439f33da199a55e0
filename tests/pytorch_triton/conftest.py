"""Where there is no CUDA device, the kernels run in Triton's interpreter, on the CPU.

Triton decides at import, for its own functions too, so this happens while tests are collected: before any test can
have imported Triton by way of another package.
"""

import importlib
import os

import pytest
import torch

KERNELS = "backends.pytorch.triton_kernels."
KERNEL_MODULES = (
    "attention_kernel",
    "gate_kernel",
    "kv_store_kernel",
    "norm_kernel",
    "reduce_kernel",
    "sampling_kernel",
)
MODULES = (
    *(KERNELS + name for name in KERNEL_MODULES),
    "triton.experimental.gluon",  # which a first launch imports
)


def _import_kernels(*, interpreted: bool) -> None:
    before = os.environ.get("TRITON_INTERPRET")
    if interpreted:
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        for name in MODULES:
            importlib.import_module(name)
    finally:
        if interpreted and before is None:
            del os.environ["TRITON_INTERPRET"]


INTERPRETED = not torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
try:
    _import_kernels(interpreted=INTERPRETED)
except ModuleNotFoundError as error:
    if error.name != "triton":
        raise
    HAS_TRITON = False
else:
    HAS_TRITON = True


@pytest.fixture(scope="session")
def interpreted_or_cuda(request: pytest.FixtureRequest) -> torch.device:
    """The device of the tests' tensors: each test runs on both kinds, as far as the machine has them."""
    if not HAS_TRITON:
        pytest.skip("triton is not installed: no wheel of it for this platform")
    if request.param == "cuda" and INTERPRETED:
        pytest.skip("no CUDA device here, or TRITON_INTERPRET=1: the kernels are interpreted")
    if request.param == "cpu" and not INTERPRETED:
        pytest.skip("the kernels are compiled for this machine's CUDA device; TRITON_INTERPRET=1 interprets them")
    return torch.device(request.param)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = [name for mark in metafunc.definition.iter_markers("parametrize") for name in str(mark.args[0]).split(",")]
    if "interpreted_or_cuda" in metafunc.fixturenames and "interpreted_or_cuda" not in names:
        devices = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
        metafunc.parametrize("interpreted_or_cuda", devices, indirect=True, scope="session")


@pytest.fixture(scope="session")
def interpreted() -> None:
    """For tests that run the kernels in Triton's interpreter and nowhere else."""
    if not HAS_TRITON:
        pytest.skip("triton is not installed: no wheel of it for this platform")
    if not INTERPRETED:
        pytest.skip("the kernels are compiled for this machine's CUDA device; TRITON_INTERPRET=1 interprets them")
