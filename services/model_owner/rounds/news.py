"""Whether anything has happened in the runs, for those who wait for work: one number.

Whatever gives a node something to do is recorded as an event in the same transaction. So a node's
work is looked for again when there is a newer event, wherever it was written (here, in another API
process, in the worker). However many nodes wait, a process asks the database for the newest event
fifty times a second at most, and ten times where nothing has happened for a while.
"""

from __future__ import annotations

import asyncio
import time

from anyio.to_thread import run_sync

from primia.chassis.context import Context
from services.model_owner.rounds import store

_LOOK_SECONDS = 0.02
_QUIET_LOOK_SECONDS = 0.1
_QUIET_AFTER_SECONDS = 5.0
# Under PostgreSQL a lower number may be committed after a higher one: it is seen after this.
_AT_LATEST_SECONDS = 1.0
_KEY = "rounds.news"


class News:
    """Of one process; used from its event loop alone."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._newest, self._read_at, self._reading = 0, 0.0, False
        self._changed_at = 0.0

    @property
    def _pace(self) -> float:
        quiet = time.monotonic() - self._changed_at > _QUIET_AFTER_SECONDS
        return _QUIET_LOOK_SECONDS if quiet else _LOOK_SECONDS

    async def newest(self) -> int:
        """The number of the newest event, no older than a look ago."""
        if not self._reading and time.monotonic() - self._read_at >= self._pace:
            self._reading = True
            try:
                known, self._newest = self._newest, await run_sync(self._read)
                self._read_at = time.monotonic()
                if self._newest != known:
                    self._changed_at = self._read_at
            finally:
                self._reading = False
        return self._newest

    async def newer(self, known: int, seconds: float) -> None:
        """Return when there is a newer event than ``known``, after ``seconds`` or a second."""
        end = time.monotonic() + min(seconds, _AT_LATEST_SECONDS)
        while (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(self._pace, left))
            if await self.newest() != known:
                return

    def _read(self) -> int:
        with self._ctx.db.reading() as session:
            return store.newest_event(session)


def news(ctx: Context) -> News:
    found: News = ctx.extras.setdefault(_KEY, News(ctx))
    return found
