"""Long polls: look at a row again and again, until it is as wanted or the time is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Annotated, TypeVar

from anyio.to_thread import run_sync
from fastapi import Query

MAX_WAIT_SECONDS = 30
_POLL_SECONDS = 0.1

T = TypeVar("T")
# How long a request may be held: shorter than the time after which proxies give up.
Wait = Annotated[
    float, Query(ge=0, le=MAX_WAIT_SECONDS, description="seconds to wait for a change")
]


async def until(load: Callable[[], T], ready: Callable[[T], bool], seconds: float) -> T:
    """What ``load`` yields (in a thread), once it is ``ready`` or after ``seconds``."""
    end = time.monotonic() + seconds
    while True:
        found = await run_sync(load)
        left = end - time.monotonic()
        if ready(found) or left <= 0:
            return found
        await asyncio.sleep(min(_POLL_SECONDS, left))
