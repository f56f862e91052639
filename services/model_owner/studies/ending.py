"""The end of a study and of the runs of its trials."""

from __future__ import annotations

from sqlalchemy.orm import Session

from primia.chassis.context import Context
from primia.chassis.telemetry import get_logger
from primia.messages.studies import StudyState
from services.model_owner.rounds import progress
from services.model_owner.rounds import store as rounds
from services.model_owner.studies import domain, store
from services.model_owner.studies.store import Study, Trial

log = get_logger(__name__)


def end(ctx: Context, session: Session, study: Study, state: StudyState, reason: str = "") -> None:
    """The runs of its trials end with it."""
    study.state = domain.move(store.state_of(study), state)
    study.reason, study.ended = reason[: store.REASON], ctx.clock.now()
    for row in store.trials(session, study.id):
        if row.state == "running":
            cancel_run(ctx, session, row, "failed", f"the study was {state}")
    log.info("study ended", study=study.id, state=state)


def cancel_run(ctx: Context, session: Session, row: Trial, state: str, reason: str) -> None:
    row.state, row.reason = state, reason
    run = rounds.find(session, row.run, lock=True)
    if not progress.ended(run):
        progress.end(ctx, session, run, "cancelled", reason)
    session.flush()
