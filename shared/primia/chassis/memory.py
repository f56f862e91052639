"""Giving memory that has become free back to the system.

glibc keeps what a thread has freed for that thread's next need: after a model was compiled or a
session opened, hundreds of megabytes that nobody uses. Elsewhere (musl, macOS) nothing is done.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
    return found


def give_back() -> bool:
    """Milliseconds, without Python's lock. Returns whether the system takes memory back so."""
    trim = _trim()
    if trim is None:
        return False
    trim(0)
    return True
