"""The Celery entry point of training: take up a work item where it stands."""

from __future__ import annotations

from sqlalchemy.orm import Session

from primia.chassis.context import Context
from primia.chassis.jobs import Sweep, Task
from primia.chassis.leases import lease
from primia.chassis.telemetry import get_logger
from primia.errors import PrimiaError
from primia.messages.rounds import Failure, Review, WorkItem
from services.data_node.training import domain, steps, store
from services.data_node.training.delivery import deliver, postpone
from services.data_node.training.job import Job
from services.data_node.training.stopping import Interrupted, RunEnded
from services.data_node.training.tables import Run, WorkRow

log = get_logger(__name__)
_LEASE_SECONDS = 30
# A worker that dies this often over one item (out of memory, say) will not finish it.
_MAX_ATTEMPTS = 8
_LOST = Failure(code="interrupted", detail="This site was interrupted too often over one request.")
_BROKEN = Failure(code="internal", detail="This site failed unexpectedly.")


def work(ctx: Context, item_id: str) -> None:
    """Answer the item if it is open, then send the answer. May run twice, at any point."""
    with lease(ctx.db, ctx.clock, WorkRow, item_id, _LEASE_SECONDS) as held:
        if held is None:
            return
        with ctx.db.reading() as session:
            row = session.get(WorkRow, item_id)
        if row is None:
            return
        if row.state == "open":
            _answer(Job(ctx, item_id, held), row)
        deliver(ctx, item_id)


def _answer(job: Job, row: WorkRow) -> None:
    item = row.read_item()
    if job.held.attempt > _MAX_ATTEMPTS:
        _fail(job, item, _LOST, _LOST.detail)
        return
    try:
        steps.handle(job, item)
    except Interrupted:
        log.info("work was interrupted; it will be taken up again", id=job.item_id, kind=row.kind)
    except RunEnded:
        _drop(job)
    except PrimiaError as error:
        _failed(job, item, error)
    except Exception as error:  # reported to the owner; the worker goes on
        log.error("work broke", id=job.item_id, error=type(error).__name__, exc_info=error)
        _fail(job, item, _BROKEN, f"{_BROKEN.detail} {type(error).__name__}; the log says more.")


def _failed(job: Job, item: WorkItem, error: PrimiaError) -> None:
    log.warning("work failed", id=job.item_id, kind=item.kind, code=error.code)
    if domain.passes(error):
        _forgive(job)
        postpone(job.ctx, job.item_id, error)
    elif isinstance(item, Review):
        steps.refuse_review(job, item, error)
    else:
        _fail(job, item, domain.outward(error), str(error))


def _fail(job: Job, item: WorkItem, failure: Failure, detail: str) -> None:
    """Answer the item with a failure; ``detail`` is for this institution's eyes."""
    number = domain.item_round(item) if item.kind in domain.SECURE_STEPS else 0
    failure = failure.model_copy(update={"round": number or None})

    def change(session: Session) -> None:
        run = session.get(Run, item.run, with_for_update=True)
        if run is not None:
            store.set_error(session, run, failure.code, detail, job.ctx.clock.now())

    job.answer(f"/rounds/{item.run}/failure", failure, change)


def _forgive(job: Job) -> None:
    """Waiting for the owner or for disk space does not count as dying over the item."""
    with job.ctx.db.session() as session:
        row = session.get(WorkRow, job.item_id, with_for_update=True)
        if row is not None:
            row.attempts = min(row.attempts, _MAX_ATTEMPTS // 2)


def _drop(job: Job) -> None:
    with job.ctx.db.session() as session:
        row = session.get(WorkRow, job.item_id, with_for_update=True)
        if row is not None and row.state == "open":
            row.state = "dropped"


def resume(ctx: Context) -> None:
    """Send again what a lost message, a dead worker or an absent owner has left."""
    with ctx.db.reading() as session:
        due = store.due_items(session, ctx.clock.now())
    for item_id in due:
        ctx.jobs.enqueue("training.work", item_id)


TASKS: dict[str, Task] = {"training.work": work}
SWEEPS: dict[str, tuple[float, Sweep]] = {"training.resume": (5.0, resume)}
