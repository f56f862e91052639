"""Taking in a work item: once a run, round and kind, however often the owner repeats it."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy.orm import Session

from primia.chassis.context import Context
from primia.chassis.telemetry import get_logger
from primia.messages.rounds import Review, Stop, WorkItem
from primia.prg import fresh_bytes
from services.data_node.training import domain, steps, store
from services.data_node.training.tables import Agent, Run, WorkRow

log = get_logger(__name__)
# An owner that asks again so long after it took an answer has not kept it.
_FORGOTTEN = timedelta(seconds=5)
_MAX_PENDING = 100


def prepare(ctx: Context) -> None:
    with ctx.db.session() as session:
        if session.get(Agent, ctx.settings.owner_name) is None:
            session.add(Agent(id=ctx.settings.owner_name))


def take_in(ctx: Context, item: WorkItem) -> str | None:
    """The id of the item's row, new or old; None for an item that contradicts an earlier one."""
    with ctx.db.session() as session:
        row = store.find_item(session, item)
        if row is None:
            if not _is_due(session, item):
                log.warning("unasked request", run=item.run, kind=item.kind)
                return None
            row = store.add_item(session, fresh_bytes(16).hex(), item, ctx.clock.now())
            if isinstance(item, Stop):
                # At once, so that a training in progress ends even while all workers are busy.
                steps.end_run(ctx, session, item)
            ctx.jobs.enqueue_after(session, "training.work", row.id)
        elif row.digest != domain.digest(item):
            _contradiction(ctx, session, item)
            return None
        elif _is_forgotten(ctx, row):
            row.state = "answered"
            ctx.jobs.enqueue_after(session, "training.work", row.id)
        return row.id


def _is_due(session: Session, item: WorkItem) -> bool:
    """Whether the owner may leave one more row here: proposals that wait for a decision are
    bounded, and so is work of runs that this site does not know (it is answered with a failure)."""
    if isinstance(item, Review):
        return len(store.runs(session, "pending", _MAX_PENDING)) < _MAX_PENDING
    return session.get(Run, item.run) is not None or store.strays(session) < _MAX_PENDING


def is_settled(ctx: Context, item_id: str) -> bool:
    """Whether the owner has the answer, or has to wait for somebody's decision."""
    with ctx.db.reading() as session:
        row = session.get(WorkRow, item_id)
        return row is None or row.state in ("sent", "dropped")


def _is_forgotten(ctx: Context, row: WorkRow) -> bool:
    if row.state != "sent" or row.sent is None or ctx.clock.now() - row.sent < _FORGOTTEN:
        return False
    if (row.path or "").endswith("/update"):
        return (ctx.files.root / "rounds" / row.run / str(row.round) / "update.bin").exists()
    return True


def _contradiction(ctx: Context, session: Session, item: WorkItem) -> None:
    detail = (
        f"The model owner asks for {item.kind} in round {domain.item_round(item)} again with other "
        "contents; it is not answered."
    )
    log.warning("contradictory request", run=item.run, kind=item.kind)
    run = session.get(Run, item.run)
    if run is not None:
        store.set_error(session, run, "unexpected-message", detail, ctx.clock.now())
