"""Giving memory that has become free back to the system.

glibc keeps what a thread has freed for that thread's next need: after a model was compiled or a
session opened, hundreds of megabytes that nobody uses. Elsewhere (musl, macOS) nothing is done.
Not after every task: what the next one needs again must be found anew, page by page, and where a
hypervisor has taken it, that takes seconds a gigabyte.
"""

from __future__ import annotations

import ctypes
import functools
import threading
import time
from collections.abc import Callable


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
    return found


_SELDOM_SECONDS = 30.0


class _Seldom:
    """At most once in a while in a process, whichever thread asks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = time.monotonic()

    def due(self) -> bool:
        with self._lock:
            now = time.monotonic()
            if now - self._last < _SELDOM_SECONDS:
                return False
            self._last = now
            return True


@functools.cache
def _seldom() -> _Seldom:
    return _Seldom()


def give_back_at_times() -> bool:
    """``give_back``, unless it was done within the last half minute. Returns whether it was."""
    return _seldom().due() and give_back()


def give_back() -> bool:
    """Milliseconds, without Python's lock. Returns whether the system takes memory back so."""
    trim = _trim()
    if trim is None:
        return False
    trim(0)
    return True
