"""Waiting for a peer that is busy, without giving up the material that is held meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx

from primia.errors import PeerUnavailable

BUSY_SECONDS = 300
_PAUSE_SECONDS = 1.0


def patiently(
    call: Callable[[], httpx.Response],
    go_on: Callable[[], None],
    seconds: float = BUSY_SECONDS,
    waits: Callable[[str], None] = lambda _: None,
) -> httpx.Response:
    """The answer of ``call``, which is repeated while the peer says that it is busy (503).

    A peer that cannot be reached at all is raised at once; ``go_on`` raises what ends the wait;
    ``waits`` is told once for what reason.
    """
    deadline = time.monotonic() + seconds
    told = False
    while True:
        try:
            return call()
        except PeerUnavailable as error:
            if error.extra.get("status_of_peer") != 503 or time.monotonic() >= deadline:
                raise
            if not told:
                waits(error.detail)
                told = True
        go_on()
        time.sleep(_PAUSE_SECONDS)
