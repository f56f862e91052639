"""Whether long work must leave off: asked between batches."""

from __future__ import annotations

import time

from primia.chassis.context import Context
from primia.chassis.leases import Held
from primia.errors import Conflict
from services.data_node.training.tables import Run, WorkRow

_SECONDS_BETWEEN_LOOKS = 0.5


class Interrupted(Exception):
    """This process ends, or has lost the work to another, or nobody waits for it any more."""


class RunEnded(Conflict):
    """The run is over at this site: what was being computed for it is of no use."""

    code = "run-ended"
    title = "The run has ended"


class Stopping:
    """Call it often. Raises Interrupted or RunEnded; looks at the database twice a second: the run
    may have been cancelled, or the owner gone on to the next round without this site."""

    def __init__(self, ctx: Context, run: str, item: str, held: Held) -> None:
        self._ctx, self._run, self._item, self._held = ctx, run, item, held
        self._looked = 0.0

    def __call__(self) -> None:
        if self._ctx.jobs.stopping() or self._held.lost.is_set():
            raise Interrupted
        now = time.monotonic()
        if now - self._looked >= _SECONDS_BETWEEN_LOOKS:
            self._looked = now
            self._look()

    def _look(self) -> None:
        with self._ctx.db.reading() as session:
            run = session.get(Run, self._run)
            item = session.get(WorkRow, self._item)
        if run is None or run.state != "active":
            raise RunEnded("The run has ended at this site.")
        if item is None or item.state != "open":
            raise Interrupted
