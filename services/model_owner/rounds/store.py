"""Every query on training runs, inside the caller's transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import cast

from pydantic import JsonValue
from sqlalchemy import ColumnElement, delete, func, or_, select, update
from sqlalchemy.orm import Session

from primia.chassis.db import one_at_a_time
from primia.errors import Conflict, NotFound
from primia.learning.statistics import Statistics
from primia.messages.rounds import Proposal, RunRequest
from primia.messages.runs import QuantisationStep
from services.model_owner.rounds.course import Course, Model
from services.model_owner.rounds.domain import (
    ACTIVE,
    CLOSED,
    ENDED,
    Member,
    Phase,
    Purpose,
    RunState,
    SiteState,
    Stage,
    absorbable,
)
from services.model_owner.rounds.tables import Contribution, Envelope, Event, Round, Run, Site


def add_run(session: Session, run: Run, proposal: Proposal) -> Run:
    """The run and its sites. Raises Conflict, naming the run, where a node is in one already.

    Of the transactions that start runs one goes on at a time: a search starts several in one, and
    two that engaged each other's sites would wait for one another.
    """
    one_at_a_time(session, "runs.start")
    _refuse_engaged(session, [node.name for node in proposal.nodes])
    session.add(run)
    session.flush()
    session.add_all(
        Site(run=run.id, node=node.name, public_key=node.public_key) for node in proposal.nodes
    )
    session.flush()
    return run


def _refuse_engaged(session: Session, nodes: Sequence[str]) -> None:
    wanted = select(Site).where(Site.node.in_(nodes), Site.engaged.is_(True)).order_by(Site.node)
    engaged = session.scalars(wanted).first()
    if engaged is not None:
        raise Conflict(
            f"{engaged.node} takes part in run {engaged.run} already.",
            hint="Wait until that run has ended, or cancel it.",
            node=engaged.node,
            run=engaged.run,
        )


def find(session: Session, run_id: str, *, lock: bool = False) -> Run:
    """``lock``: no other transaction changes the run or what belongs to it meanwhile."""
    row = session.get(Run, run_id, with_for_update=lock, populate_existing=lock)
    if row is None:
        raise NotFound(f"There is no run {run_id}.", hint="GET /rounds lists them.")
    return row


def page(session: Session, before: str | None, limit: int) -> Sequence[Run]:
    """Newest first, those behind the run ``before``."""
    wanted = select(Run).order_by(Run.created.desc(), Run.id.desc()).limit(limit)
    if before is not None:
        last = find(session, before)
        wanted = wanted.where(
            or_(Run.created < last.created, (Run.created == last.created) & (Run.id < last.id))
        )
    return session.scalars(wanted).all()


def sites(session: Session, run: str) -> Sequence[Site]:
    return session.scalars(select(Site).where(Site.run == run).order_by(Site.node)).all()


def site(session: Session, run: str, node: str) -> Site:
    """A stranger learns no more than that of an unknown run."""
    row = session.get(Site, (run, node))
    if row is None:
        raise _no_part(run, node)
    return row


def check_site(session: Session, run: str, node: str) -> None:
    """Like ``site``, without keeping a row that may be stale once the run is locked."""
    wanted = select(Site.node).where(Site.run == run, Site.node == node)
    if session.scalar(wanted) is None:
        raise _no_part(run, node)


def _no_part(run: str, node: str) -> NotFound:
    return NotFound(f"{node} takes part in no run {run}.")


def engagements(session: Session) -> dict[str, str]:
    """node -> the run that it takes part in at present"""
    return {row.node: row.run for row in session.scalars(select(Site).where(Site.engaged))}


def places(session: Session, node: str) -> Sequence[tuple[Run, Site]]:
    """Where the owner may wait for the node: ended runs first, so that it is free for the next."""
    wanted = (
        select(Run, Site)
        .join(Site, Site.run == Run.id)
        .where(Site.node == node, or_(Site.engaged, Site.acknowledged.is_(False)))
        .order_by(Run.created, Run.id)
    )
    found = [(run, place) for run, place in session.execute(wanted)]
    return sorted(found, key=lambda pair: pair[0].state not in ENDED)


def release(session: Session, run: str) -> None:
    session.execute(update(Site).where(Site.run == run).values(engaged=False))


def present_round(session: Session, run: Run) -> Round | None:
    """The round of the run's number; None before the first and after the last."""
    if run.state not in ("running", "evaluating"):
        return None
    return find_round(session, run.id, run.number)


def find_round(session: Session, run: str, number: int) -> Round | None:
    return session.scalar(select(Round).where(Round.run == run, Round.number == number))


def rounds(session: Session, run: str) -> Sequence[Round]:
    return session.scalars(select(Round).where(Round.run == run).order_by(Round.number)).all()


def contributions(session: Session, round_id: str) -> Sequence[Contribution]:
    wanted = select(Contribution).where(Contribution.round == round_id)
    return session.scalars(wanted.order_by(Contribution.node)).all()


def contributions_of(session: Session, run: str) -> dict[str, list[Contribution]]:
    """Of all rounds of a run, by round."""
    wanted = select(Contribution).join(Round, Round.id == Contribution.round)
    found: dict[str, list[Contribution]] = {}
    for row in session.scalars(wanted.where(Round.run == run).order_by(Contribution.node)):
        found.setdefault(row.round, []).append(row)
    return found


def uncounted(session: Session, run: Run, node: str) -> tuple[int, ...]:
    """Earlier rounds in which the node has trained and whose result is without its update."""
    wanted = (
        select(Round.number)
        .join(Contribution, Contribution.round == Round.id)
        .where(Round.run == run.id, Round.purpose == "train", Round.number < run.number)
        .where(Contribution.node == node, Contribution.stage >= Stage.TRAINED)
        .where(or_(Round.phase != "done", Contribution.stage < Stage.ABSORBED))
    )
    return tuple(session.scalars(wanted.order_by(Round.number)))


def members(rows: Iterable[Contribution]) -> list[Member]:
    return [Member(row.node, Stage(row.stage), row.dropped is not None) for row in rows]


def envelopes(session: Session, round_id: str) -> dict[str, dict[str, str]]:
    """dealer -> holder -> sealed"""
    found: dict[str, dict[str, str]] = {}
    for row in session.scalars(select(Envelope).where(Envelope.round == round_id)):
        found.setdefault(row.dealer, {})[row.holder] = row.sealed
    return found


def inbox(session: Session, round_id: str, holder: str) -> dict[str, str]:
    """dealer -> what it sealed for the holder"""
    wanted = select(Envelope).where(Envelope.round == round_id, Envelope.holder == holder)
    return {row.dealer: row.sealed for row in session.scalars(wanted.order_by(Envelope.dealer))}


def erase_secrets(session: Session, round_id: str) -> None:
    """What was only needed to open the round."""
    session.execute(delete(Envelope).where(Envelope.round == round_id))
    session.execute(
        update(Contribution)
        .where(Contribution.round == round_id)
        .values(reveal=None, confirmation=None, upload=None)
    )


def record(
    session: Session,
    run: str,
    at: datetime,
    kind: str,
    *,
    round: int | None = None,  # the field's name
    node: str | None = None,
    **detail: JsonValue,
) -> None:
    session.add(Event(run=run, at=at, kind=kind, round=round, node=node, detail=detail))


def newest_event(session: Session) -> int:
    """Its number, over all runs; 0 before the first."""
    return session.scalar(select(func.max(Event.id))) or 0


def record_once(session: Session, run: str, at: datetime, kind: str, reason: str) -> None:
    """An event, unless it only repeats the run's latest one."""
    latest = select(Event).where(Event.run == run).order_by(Event.id.desc()).limit(1)
    row = session.scalars(latest).first()
    if row is None or row.kind != kind:
        record(session, run, at, kind, reason=reason)


def events(session: Session, run: str, after: int, limit: int) -> Sequence[Event]:
    wanted = select(Event).where(Event.run == run, Event.id > after).order_by(Event.id)
    return session.scalars(wanted.limit(limit)).all()


def quantisation_steps(session: Session, run: str) -> dict[int, QuantisationStep]:
    """Round -> what its opening said."""
    wanted = select(Event).where(Event.run == run, Event.kind == "opened", Event.round.is_not(None))
    return {
        row.round: QuantisationStep.model_validate(row.detail["quantisation_step"])
        for row in session.scalars(wanted)
        if row.round is not None and "quantisation_step" in row.detail
    }


def due(session: Session, now: datetime) -> Sequence[str]:
    """Active runs whose time is up."""
    wanted = select(Run.id).where(Run.state.in_(ACTIVE), Run.deadline <= now)
    return session.scalars(wanted).all()


def _free(table: type[Run] | type[Round], now: datetime) -> ColumnElement[bool]:
    """No worker holds it."""
    return or_(table.lease_until.is_(None), table.lease_until < now)


def wanting_absorption(session: Session, now: datetime) -> Sequence[str]:
    """Rounds with updates that may be added to their sum now."""
    wanted = (
        select(Round.id, Round.secure)
        .join(Contribution, Contribution.round == Round.id)
        .where(Round.phase.not_in(CLOSED), Contribution.stage == Stage.UPLOADED, _free(Round, now))
    )
    return [
        round_id
        for round_id, secure in session.execute(wanted.distinct())
        if absorbable(members(contributions(session, round_id)), secure=secure)
    ]


def wanting_opening(session: Session, now: datetime) -> Sequence[str]:
    wanted = select(Round.id).where(Round.phase == "opening", _free(Round, now))
    return session.scalars(wanted).all()


def wanting_finish(session: Session, now: datetime) -> Sequence[str]:
    summing = select(Round.run).where(Round.phase.not_in(CLOSED))
    wanted = select(Run.id).where(
        Run.state == "evaluating",
        Run.deadline.is_(None),
        Run.id.not_in(summing),
        _free(Run, now),
    )
    return session.scalars(wanted).all()


def wanting_cleaning(session: Session) -> Sequence[str]:
    return session.scalars(select(Run.id).where(Run.state.in_(ENDED), Run.cleaned.is_(False))).all()


def active_runs(session: Session) -> int:
    return len(session.scalars(select(Run.id).where(Run.state.in_(ACTIVE))).all())


def state_of(row: Run) -> RunState:
    return cast(RunState, row.state)


def site_state(row: Site) -> SiteState:
    return cast(SiteState, row.state)


def purpose_of(row: Round) -> Purpose:
    return cast(Purpose, row.purpose)


def statistics_of(row: Run) -> Statistics | None:
    return Statistics.model_validate(row.statistics) if row.statistics else None


def phase_of(row: Round) -> Phase:
    return cast(Phase, row.phase)


def proposal_of(row: Run) -> Proposal:
    return Proposal.model_validate(row.proposal)


def others(row: Run) -> list[Model]:
    """The models that the sites evaluate beside the present one."""
    best = Course.model_validate(row.course).best
    found = [Model.model_validate(each) for each in row.compared]
    return found if best is None or best.path == row.weights else [best, *found]


def request_of(row: Run) -> RunRequest:
    return RunRequest.model_validate(row.request)
