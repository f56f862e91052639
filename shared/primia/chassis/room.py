"""How much memory this process may take: what the system has left, or less where a control group
says so, as a container's or a unit's limit does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

_MOUNT, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# The files of a group: its limit, its use, and those of its cached pages that can be taken back.
_NEW = ("memory.max", "memory.current", ("active_file", "inactive_file"))
_OLD = (
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
)


def room(mount: Path = _MOUNT, own: Path = _OWN) -> int:
    """Bytes, what this process has already among them."""
    mine = psutil.Process().memory_info().rss
    left = [psutil.virtual_memory().available, *_left_in_groups(mount, own)]
    return mine + max(0, min(left))


def _left_in_groups(mount: Path, own: Path) -> Iterator[int]:
    """What each group that this process is in has left, up to the root."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return  # no such groups here
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            yield from _left(mount, path, _NEW)
        elif "memory" in controllers.split(","):
            yield from _left(mount / "memory", path, _OLD)


def _left(root: Path, path: str, names: tuple[str, str, tuple[str, ...]]) -> Iterator[int]:
    """A container may see its own group as the root: whichever folders are there count."""
    here = root / path.lstrip("/")
    while here.is_relative_to(root):
        with contextlib.suppress(OSError, ValueError):  # no limit here ("max"), or nothing to read
            limit, used, cached = names
            free = int((here / limit).read_text()) - int((here / used).read_text())
            statistics = _read_statistics(here / "memory.stat")
            yield free + sum(statistics.get(name, 0) for name in cached)
        here = here.parent


def _read_statistics(file: Path) -> Mapping[str, int]:
    rows = (line.split() for line in file.read_text().splitlines())
    return {name: int(value) for name, value in rows}
