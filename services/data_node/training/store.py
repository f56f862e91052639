"""Every query on the tables of training, inside the caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast

from sqlalchemy import (
    delete,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from primia.errors import Conflict, NotFound, UnexpectedMessage
from primia.messages.rounds import (
    Beginning,
    Evaluate,
    Measure,
    Proposal,
    Scores,
    Train,
    TrainReport,
    WorkItem,
)
from services.data_node.datasets import store as datasets
from services.data_node.training.domain import (
    ENDED,
    ItemState,
    RoundKind,
    RunState,
    digest,
    item_round,
    move,
)
from services.data_node.training.tables import (
    MAX_TEXT,
    Agent,
    Round,
    RoundSecret,
    Run,
    RunEvent,
    WorkRow,
)

_ACTIVE_SLOT = 1


def event(session: Session, run: str, kind: str, data: Mapping[str, Any], now: datetime) -> None:
    session.add(RunEvent(run=run, kind=kind, data=dict(data), created=now))


def events_after(session: Session, run: str, last: int, limit: int = 500) -> list[RunEvent]:
    wanted = (
        select(RunEvent)
        .where(RunEvent.run == run, RunEvent.id > last)
        .order_by(RunEvent.id)
        .limit(limit)
    )
    return list(session.scalars(wanted))


def ensure_agent(session: Session, owner: str) -> None:
    if session.get(Agent, owner) is None:
        session.add(Agent(id=owner))


# Runs


def propose(session: Session, proposal: Proposal, now: datetime) -> Run:
    """The run's row, made at its first review. Raises Conflict for another proposal of that id."""
    row = session.get(Run, proposal.run, with_for_update=True)
    if row is not None:
        if row.digest != digest(proposal):
            raise Conflict(f"Run {proposal.run} was proposed with other terms before.")
        return row
    row = Run(
        id=proposal.run,
        owner=proposal.owner,
        model=proposal.model.name,
        proposal=proposal.model_dump_json(),
        digest=digest(proposal),
        state="pending",
        created=now,
    )
    session.add(row)
    session.flush()
    event(session, row.id, "state", {"state": "pending"}, now)
    return row


def find_run(session: Session, run: str, *, lock: bool = False) -> Run:
    row = session.get(Run, run, with_for_update=lock or None)
    if row is None:
        raise NotFound(f"There is no run {run}.", hint="GET /runs lists those this site knows.")
    return row


def runs(session: Session, state: RunState | None, limit: int) -> list[Run]:
    """Newest first."""
    wanted = select(Run).order_by(Run.created.desc(), Run.id).limit(limit)
    if state is not None:
        wanted = wanted.where(Run.state == state)
    return list(session.scalars(wanted))


def active_run(session: Session) -> Run | None:
    return session.scalar(select(Run).where(Run.slot == _ACTIVE_SLOT))


def set_state(session: Session, row: Run, state: RunState, reason: str, now: datetime) -> None:
    """Raises Conflict for a transition that the rules do not know, or if another run is active."""
    row.state = move(cast(RunState, row.state), state)
    row.reason = reason[:MAX_TEXT]
    row.slot = _ACTIVE_SLOT if state == "active" else None
    if state in ENDED:
        row.ended = now
    try:
        session.flush()
    except IntegrityError:
        raise Conflict("This site takes part in another run already.") from None
    event(session, row.id, "state", {"state": state, "reason": row.reason}, now)


def end(session: Session, row: Run, state: RunState, reason: str, now: datetime) -> None:
    """The run is over here: nothing of it is answered any more, and the data set is free."""
    set_state(session, row, state, reason, now)
    drop_items(session, row.id)
    wipe_secrets(session, row.id)
    datasets.release(session, holder(row.id))


def holder(run: str) -> str:
    """Under which name a run holds its data set."""
    return f"run {run}"


def set_error(session: Session, row: Run, code: str, detail: str, now: datetime) -> None:
    if (row.error_code, row.error_detail) != (code, detail[:MAX_TEXT]):
        row.error_code, row.error_detail = code, detail[:MAX_TEXT]
        event(session, row.id, "error", {"code": code, "detail": row.error_detail}, now)


def clear_error(row: Run) -> None:
    row.error_code = row.error_detail = None


def set_evaluation(session: Session, row: Run, scores: Scores, now: datetime) -> None:
    row.evaluation = scores.model_dump(mode="json")
    event(session, row.id, "evaluation", row.evaluation, now)


# Rounds


def find_round(session: Session, run: str, number: int) -> Round | None:
    return session.get(Round, (run, number), with_for_update=True)


def kind_of_round(session: Session, run: str, number: int) -> RoundKind:
    row = session.get(Round, (run, number))
    return cast("RoundKind", row.kind) if row else "train"


def current_round(session: Session, run: str) -> int:
    """The latest round begun here; 0 before the first."""
    return session.scalar(select(func.max(Round.number)).where(Round.run == run)) or 0


def rounds(session: Session, run: str) -> list[Round]:
    return list(session.scalars(select(Round).where(Round.run == run).order_by(Round.number)))


def begin_measuring(session: Session, run: str, number: int, now: datetime) -> Round:
    row = _begin_counting(session, run, number, "measure", now)
    event(session, run, "measured", {"round": number}, now)
    return row


def begin_evaluating(session: Session, run: str, number: int, now: datetime) -> Round:
    return _begin_counting(session, run, number, "evaluate", now)


def _begin_counting(
    session: Session, run: str, number: int, kind: RoundKind, now: datetime
) -> Round:
    row = Round(run=run, number=number, kind=kind, phase="trained", report={}, created=now)
    session.add(row)
    return row


def has_revealed(session: Session, run: str, kind: RoundKind) -> bool:
    """Whether the owner may have opened a sum of this kind with this site's values in this run."""
    wanted = select(Round.number).where(
        Round.run == run, Round.kind == kind, Round.phase == "revealed"
    )
    return session.scalar(wanted) is not None


def begin_round(
    session: Session, run: str, number: int, phase: str, report: TrainReport, now: datetime
) -> Round:
    shown = report.model_dump(mode="json", exclude={"advertisement", "exponents"})
    row = Round(run=run, number=number, kind="train", phase=phase, report=shown, created=now)
    session.add(row)
    event(session, run, "trained", {"round": number, **shown}, now)
    return row


def secret(session: Session, run: str, number: int) -> bytes | None:
    row = session.get(RoundSecret, (run, number))
    return row.sealed if row else None


def put_secret(session: Session, run: str, number: int, sealed: bytes) -> None:
    row = session.get(RoundSecret, (run, number))
    if row is None:
        session.add(RoundSecret(run=run, number=number, sealed=sealed))
    else:
        row.sealed = sealed


def wipe_secrets(session: Session, run: str, below: int | None = None) -> None:
    """Of all rounds of the run, or of those before ``below``."""
    wanted = delete(RoundSecret).where(RoundSecret.run == run)
    session.execute(wanted if below is None else wanted.where(RoundSecret.number < below))


# Work items


def find_item(session: Session, item: WorkItem) -> WorkRow | None:
    wanted = select(WorkRow).where(
        WorkRow.run == item.run, WorkRow.round == item_round(item), WorkRow.kind == item.kind
    )
    return session.scalar(wanted.with_for_update())


def beginning(session: Session, run: str, number: int) -> Beginning:
    """The item that the round began with here. Raises UnexpectedMessage if it has not."""
    row = session.get(Round, (run, number))
    wanted = select(WorkRow).where(
        WorkRow.run == run,
        WorkRow.round == number,
        WorkRow.kind == (row.kind if row else "train"),
    )
    found = session.scalar(wanted)
    item = found.read_item() if found else None
    if not isinstance(item, Train | Measure | Evaluate):
        raise UnexpectedMessage(f"This site has not trained in round {number}.")
    return item


def evaluations(session: Session, run: str) -> list[Evaluate]:
    """What this site has been asked to evaluate in this run and has answered."""
    wanted = select(WorkRow).where(
        WorkRow.run == run, WorkRow.kind == "evaluate", WorkRow.answer.is_not(None)
    )
    items = [row.read_item() for row in session.scalars(wanted.order_by(WorkRow.round))]
    return [item for item in items if isinstance(item, Evaluate)]


def add_item(session: Session, item_id: str, item: WorkItem, now: datetime) -> WorkRow:
    row = WorkRow(
        id=item_id,
        run=item.run,
        round=item_round(item),
        kind=item.kind,
        digest=digest(item),
        body=item.model_dump_json(),
        state="open",
        created=now,
    )
    session.add(row)
    session.flush()
    return row


def strays(session: Session) -> int:
    """Rows of work for runs that this site has never been asked to review."""
    known = select(Run.id)
    counted = select(func.count()).select_from(WorkRow).where(WorkRow.run.not_in(known))
    return session.scalar(counted) or 0


def review_of(session: Session, run: str) -> WorkRow | None:
    wanted = select(WorkRow).where(WorkRow.run == run, WorkRow.kind == "review")
    return session.scalar(wanted.with_for_update())


def set_answer(row: WorkRow, path: str, answer: str | None, now: datetime) -> None:
    """``answer`` is the JSON body; None: the round's update file."""
    row.path, row.answer, row.state, row.answered = path, answer, "answered", now
    row.not_before = None


def set_item_state(row: WorkRow, state: ItemState) -> None:
    row.state = state


def drop_items(session: Session, run: str, *, before_round: int | None = None) -> None:
    """Those not sent: of the whole run but its stop, or of its rounds before ``before_round``."""
    wanted = (
        update(WorkRow)
        .where(WorkRow.run == run, WorkRow.state.in_(("open", "waiting", "answered")))
        .where(WorkRow.kind != "stop")
        .values(state="dropped")
        .execution_options(synchronize_session=False)
    )
    if before_round is not None:
        wanted = wanted.where(WorkRow.round < before_round, WorkRow.kind != "review")
    session.execute(wanted)


def due_items(session: Session, now: datetime, limit: int = 100) -> list[str]:
    """Items that want work and that nobody holds."""
    wanted = (
        select(WorkRow.id)
        .where(
            WorkRow.state.in_(("open", "answered")),
            or_(WorkRow.not_before.is_(None), WorkRow.not_before <= now),
            or_(WorkRow.lease_until.is_(None), WorkRow.lease_until < now),
        )
        .order_by(WorkRow.created)
        .limit(limit)
    )
    return list(session.scalars(wanted))
