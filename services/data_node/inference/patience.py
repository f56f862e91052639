"""Waiting for a peer that is busy, without giving up the material that is held meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from primia.errors import PeerUnavailable

BUSY_SECONDS = 300
_PAUSE_SECONDS = 1.0


T = TypeVar("T")


def patiently(
    call: Callable[[], T],
    go_on: Callable[[], None],
    seconds: float = BUSY_SECONDS,
    waits: Callable[[str], None] = lambda _: None,
    away: float = 0,
) -> T:
    """The answer of ``call``, which is repeated while the peer says that it is busy (503).

    A peer that cannot be reached at all is raised after ``away`` seconds: at once, where material
    is held; ``go_on`` raises what ends the wait; ``waits`` is told once for what reason.
    """
    started = time.monotonic()
    told = False
    while True:
        try:
            return call()
        except PeerUnavailable as error:
            busy = error.extra.get("status_of_peer") == 503
            if time.monotonic() - started >= (seconds if busy else away):
                raise
            if not told:
                waits(error.detail)
                told = True
        go_on()
        time.sleep(_PAUSE_SECONDS)
