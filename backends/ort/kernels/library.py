"""The compiled kernel library: where it is, whether to use it, and which instructions it runs with.

Knows no model and does not import ONNX Runtime; sessions register the library by its path.
"""

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from backends.ort.kernels.build import LIBRARY_NAME

__all__ = ["KernelStatus", "find_library", "kernel_status"]

_SWITCH = "NANOVLLM_KERNELS"


@dataclass(frozen=True, slots=True)
class KernelStatus:
    """library: its path, or None where the stock operators are used. reason: in words, both ways. failure: whether
    something that was built does not work, other than the library being absent or turned off."""

    library: Path | None
    reason: str
    failure: bool = False


def find_library() -> Path | None:
    """The library that the package's build left beside this file."""
    path = Path(__file__).parent / LIBRARY_NAME
    return path if path.is_file() else None


def kernel_status() -> KernelStatus:
    """Whether sessions shall use the library. Loads it, which is quick.

    NANOVLLM_KERNELS=0 turns it off; the path of a library there is used in place of the one that the build left.
    """
    wanted = os.environ.get(_SWITCH, "")
    if wanted == "0":
        return KernelStatus(None, f"turned off by {_SWITCH}=0")
    path = find_library() if wanted in ("", "1") else Path(wanted)
    if path is None:
        return KernelStatus(
            None, "not built: install a C++ compiler (g++ or clang++), then reinstall nanovllm; pip -v shows the build"
        )
    try:
        library = ctypes.CDLL(str(path))
        name = library.nanovllm_instruction_set
    except (OSError, AttributeError) as error:
        return KernelStatus(
            None, f"{path} cannot be used: {error}. Reinstall nanovllm, or unset {_SWITCH}", failure=True
        )
    name.restype = ctypes.c_char_p
    return KernelStatus(path, f"active, with {name().decode()} instructions")
