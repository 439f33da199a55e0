"""What the machine has for us: free memory and physical cores, seen through affinity and cgroup limits.

Every reading has a fallback, so that it works on Linux, macOS and Windows.
"""

import ctypes
import os
import sys
from pathlib import Path

__all__ = ["available_memory_bytes", "num_physical_cores", "peak_memory_bytes"]

_CGROUP = Path("/sys/fs/cgroup")
_CPU_TOPOLOGY = Path("/sys/devices/system/cpu")


def available_memory_bytes() -> int:
    """Bytes that can be allocated without swapping: the system's figure, or what is left of the cgroup's limit."""
    if sys.platform == "win32":
        return _available_windows()
    free = _meminfo_available()
    if free is None:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    left = _cgroup_left()
    return free if left is None else min(free, left)


def num_physical_cores() -> int:
    """Physical cores that this process may use: within its CPU affinity and its cgroup's quota, at least 1."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = {_read(_CPU_TOPOLOGY / f"cpu{cpu}" / "topology" / "thread_siblings_list") or str(cpu) for cpu in cpus}
    quota = _cgroup_cpu_quota()
    return max(1, len(siblings) if quota is None else min(len(siblings), round(quota)))


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _meminfo_available() -> int | None:
    for line in (_read(Path("/proc/meminfo")) or "").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_left() -> int | None:
    """Limit minus use, of cgroup v2 or else v1; None where there is no limit."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        limit_text, used_text = _read(_CGROUP / limit), _read(_CGROUP / used)
        if limit_text and used_text and limit_text.isdigit():
            return max(0, int(limit_text) - int(used_text))
    return None


def _cgroup_cpu_quota() -> float | None:
    """CPUs' worth of time per period, of cgroup v2 or else v1; None where there is no quota."""
    text = _read(_CGROUP / "cpu.max")
    if text is None:
        quota = _read(_CGROUP / "cpu" / "cpu.cfs_quota_us")
        text = f"{quota} {_read(_CGROUP / 'cpu' / 'cpu.cfs_period_us')}" if quota else ""
    parts = text.split()
    if len(parts) == 2 and parts[0].isdigit() and parts[1].isdigit():
        return int(parts[0]) / int(parts[1])
    return None


def _available_windows() -> int:
    class Status(ctypes.Structure):
        """MEMORYSTATUSEX of the Windows API."""

        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *((name, ctypes.c_ulonglong) for name in ("total", "available", "c", "d", "e", "f", "g")),
        )

    status = Status(length=ctypes.sizeof(Status))
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined,unused-ignore]
    return int(status.available)


def peak_memory_bytes() -> int | None:
    """Peak resident set size in bytes; None where the system does not tell (Windows).

    getrusage(2): ru_maxrss is in KiB on Linux, in bytes on macOS.
    """
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
