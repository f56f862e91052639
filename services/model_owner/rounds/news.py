"""Whether anything has happened in the runs, for those who wait for work: one number.

Whatever gives a node something to do is recorded as an event in the same transaction. So a node's
work is looked for again when there is a newer event, wherever it was written (here, in another API
process, in the worker). However many nodes wait, a process asks the database for the newest event
fifty times a second at most.
"""

from __future__ import annotations

import asyncio
import time

from anyio.to_thread import run_sync

from primia.chassis.context import Context
from services.model_owner.rounds import store

_LOOK_SECONDS = 0.02
# Under PostgreSQL a lower number may be committed after a higher one: it is seen after this.
_AT_LATEST_SECONDS = 1.0
_KEY = "rounds.news"


class News:
    """Of one process; used from its event loop alone."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._newest, self._read_at, self._reading = 0, 0.0, False

    async def newest(self) -> int:
        """The number of the newest event, no older than a look ago."""
        if not self._reading and time.monotonic() - self._read_at >= _LOOK_SECONDS:
            self._reading = True
            try:
                self._newest = await run_sync(self._read)
                self._read_at = time.monotonic()
            finally:
                self._reading = False
        return self._newest

    async def newer(self, known: int, seconds: float) -> None:
        """Return when there is a newer event than ``known``, after ``seconds`` or a second."""
        end = time.monotonic() + min(seconds, _AT_LATEST_SECONDS)
        while (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(_LOOK_SECONDS, left))
            if await self.newest() != known:
                return

    def _read(self) -> int:
        with self._ctx.db.reading() as session:
            return store.newest_event(session)


def news(ctx: Context) -> News:
    found: News = ctx.extras.setdefault(_KEY, News(ctx))
    return found
