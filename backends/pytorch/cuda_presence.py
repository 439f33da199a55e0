"""Whether torch may find a CUDA device here, told without loading torch, which takes seconds.

In: the packages and the driver that are installed. Out: yes or no; it may be wrong where a driver is there and no
device, and the model then runs on the CPU. Knows no torch.
"""

import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

__all__ = ["may_run_on_cuda"]

_DRIVER_FILES = (Path("/dev/nvidiactl"), Path("/proc/driver/nvidia/version"))
_HIDDEN = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES that hide every device


def may_run_on_cuda() -> bool:
    """Whether there are torch, Triton, a build of torch that is not for CPUs alone, and an NVIDIA driver."""
    if find_spec("torch") is None or find_spec("triton") is None or _is_cpu_build():
        return False
    if os.environ.get("CUDA_VISIBLE_DEVICES") in _HIDDEN:
        return False
    return any(path.exists() for path in _DRIVER_FILES) or shutil.which("nvidia-smi") is not None


def _is_cpu_build() -> bool:
    try:
        return version("torch").partition("+")[2] == "cpu"
    except PackageNotFoundError:
        return False
