"""What this process may use of the machine: processors and memory, its container's limits included.

Control groups: https://docs.kernel.org/admin-guide/cgroup-v2.html, cpu.max and memory.max.
"""

from __future__ import annotations

import os
from pathlib import Path

_GROUP = Path("/sys/fs/cgroup")


def cores(group: Path = _GROUP) -> int:
    """Processors, at least 1: what the affinity leaves, and the control group's quota."""
    found = _affinity()
    quota, _, period = _read(group / "cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit() and int(period):
        found = min(found, int(quota) // int(period))
    return max(1, found)


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes(group: Path = _GROUP) -> int:
    """The machine's memory, or less where the control group is given less."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read(group / "memory.max")
    return min(found, int(limit)) if limit.isdigit() else found


def _read(path: Path) -> str:
    """Empty where there is no such limit: no control group, or an older kernel."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
