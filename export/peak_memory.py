"""The most memory that this process has held so far."""

import sys

__all__ = ["peak_memory_bytes"]


def peak_memory_bytes() -> int | None:
    """Peak resident set size in bytes; None where the system does not tell (Windows).

    getrusage(2): ru_maxrss is in KiB on Linux, in bytes on macOS.
    """
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
