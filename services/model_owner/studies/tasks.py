"""The sweep that takes studies forward, every few seconds and after every crash."""

from __future__ import annotations

from collections.abc import Mapping

from primia.chassis.context import Context
from primia.chassis.jobs import Sweep, Task
from primia.chassis.leases import lease
from services.model_owner.studies import conduct, store
from services.model_owner.studies.store import Study

LEASE_SECONDS = 60


def advance(ctx: Context, study: str) -> None:
    with lease(ctx.db, ctx.clock, Study, study, LEASE_SECONDS) as held:
        if held is None:
            return
        with ctx.db.session() as session:
            row = store.find(session, study, lock=True)
            if row.state == "running" and not held.lost.is_set():
                conduct.advance(ctx, session, row)


def sweep(ctx: Context) -> None:
    with ctx.db.reading() as session:
        waiting = store.active(session, ctx.clock.now())
    for study in waiting:
        ctx.jobs.enqueue("studies.advance", study)


TASKS: Mapping[str, Task] = {"studies.advance": advance}
SWEEPS: Mapping[str, tuple[float, Sweep]] = {"studies.sweep": (2.0, sweep)}
