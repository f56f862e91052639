"""Taking a run forward: what the rules decide becomes rows, events and messages to the worker.

The caller holds the run's row (``store.find(..., lock=True)``), so that one transaction at a time
changes a run. Every function may be called again: it does what is still to be done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

from sqlalchemy.orm import Session

from primia.chassis.context import Context
from primia.chassis.telemetry import get_logger
from primia.errors import PrimiaError
from primia.prg import fresh_bytes
from services.model_owner.rounds import beginning, places, secure, store
from services.model_owner.rounds.domain import (
    ENDED,
    Abandon,
    Advance,
    Member,
    Phase,
    Purpose,
    RunState,
    Stage,
    Wait,
    at_least,
    following,
    move_phase,
    move_run,
    move_site,
    settle,
    step_of,
)
from services.model_owner.rounds.review import Answer, Begin, Fail, settle_review
from services.model_owner.rounds.tables import REASON, Contribution, Round, Run

log = get_logger(__name__)


def advance(ctx: Context, session: Session, run: Run) -> None:
    """As far as the run can go with what has come so far, at the present time."""
    while _moved(ctx, session, run):
        session.flush()


def _moved(ctx: Context, session: Session, run: Run) -> bool:
    state = store.state_of(run)
    if state == "reviewing":
        return _review(ctx, session, run)
    if state == "running":
        return _phase(ctx, session, run)
    if state == "evaluating":
        if store.present_round(session, run) is not None:
            return _phase(ctx, session, run)
        _evaluate(ctx, session, run)
    return False


def _expired(ctx: Context, run: Run) -> bool:
    return run.deadline is not None and run.deadline <= ctx.clock.now()


def set_deadline(ctx: Context, run: Run, timeout: str | None) -> None:
    timeouts = store.request_of(run).timeouts
    seconds = getattr(timeouts, timeout) if timeout else None
    run.deadline = None if seconds is None else ctx.clock.now() + timedelta(seconds=seconds)


def _review(ctx: Context, session: Session, run: Run) -> bool:
    sites = {row.node: row for row in store.sites(session, run.id)}
    answers = [
        Answer(row.node, store.site_state(row), tuple(row.classes), row.reason)
        for row in sites.values()
    ]
    card = store.proposal_of(run).model
    verdict = settle_review(
        answers,
        f"model {card.name} version {card.version}",
        card.classes,
        run.needed,
        expired=_expired(ctx, run),
    )
    if isinstance(verdict, Wait):
        return False
    if isinstance(verdict, Fail):
        end(ctx, session, run, "failed", verdict.reason)
        return False
    for node in verdict.silent:
        sites[node].state = move_site(store.site_state(sites[node]), "silent")
        sites[node].reason, sites[node].engaged = places.SILENT, False
        store.record(session, run.id, ctx.clock.now(), "silent", node=node)
    return _begin(ctx, session, run, verdict)


def _begin(ctx: Context, session: Session, run: Run, _verdict: Begin) -> bool:
    if run.rounds == 0:
        conclude(ctx, session, run)
        return True
    run.state = move_run(store.state_of(run), "running")
    store.record(session, run.id, ctx.clock.now(), "begun")
    _next_round(ctx, session, run)
    return True


def _next_round(ctx: Context, session: Session, run: Run) -> None:
    """The first one that comes to an end measures, if the run wants statistics."""
    if places.measures(run):
        open_round(ctx, session, run, places.of_all(ctx, session, run), "measure")
    else:
        open_round(ctx, session, run, places.of_round(ctx, session, run), "train")


def go_on(ctx: Context, session: Session, run: Run) -> None:
    """The next round; or the evaluation, where all rounds are done or no more would help."""
    if run.state == "evaluating":
        _ask_evaluations(ctx, session, run)
        return
    if run.done >= run.rounds:
        conclude(ctx, session, run)
        return
    reason = places.enough(session, run)
    if reason is not None:
        conclude(ctx, session, run, reason)
    else:
        _next_round(ctx, session, run)


def conclude(ctx: Context, session: Session, run: Run, reason: str = "") -> None:
    """Training is over: the sites evaluate."""
    run.state = move_run(store.state_of(run), "evaluating")
    if reason:
        store.record(session, run.id, ctx.clock.now(), "stopped_early", reason=reason)
    store.record(session, run.id, ctx.clock.now(), "evaluating")
    _ask_evaluations(ctx, session, run)


def _ask_evaluations(ctx: Context, session: Session, run: Run) -> None:
    """Of every site by itself; or in a round, where sites show none of their own."""
    if beginning.adding(session, run, "summed"):
        open_round(ctx, session, run, places.of_all(ctx, session, run), "evaluate")
    else:
        set_deadline(ctx, run, "train")


def settle_evaluations(session: Session, run: Run, row: Round) -> None:
    """The round that evaluated is over, and no other follows: who has not answered will not."""
    dropped = {each.node: each.dropped for each in store.contributions(session, row.id)}
    for site in store.sites(session, run.id):
        if site.state == "accepted" and site.evaluation is None and site.failed is None:
            site.failed = dropped.get(site.node) or places.SILENT
    run.number = row.number + 1


def open_round(
    ctx: Context, session: Session, run: Run, nodes: Sequence[str], purpose: Purpose
) -> None:
    """The round of the run's present number, with these nodes."""
    now = ctx.clock.now()
    proposal = store.proposal_of(run)
    counts = purpose != "train"
    row = Round(
        id=fresh_bytes(16).hex(),
        run=run.id,
        number=run.number,
        purpose=purpose,
        secure=run.secure or counts,
        needed=proposal.measuring_threshold if counts else run.needed,
        phase="training",
        started=now,
    )
    session.add(row)
    session.flush()
    session.add_all(Contribution(round=row.id, node=node) for node in nodes)
    set_deadline(ctx, run, "train")
    store.record(session, run.id, now, "round", round=row.number, phase=_DOING[purpose])
    session.flush()


_DOING: Mapping[Purpose, str] = {
    "train": "training",
    "measure": "measuring",
    "evaluate": "evaluating",
}


def _phase(ctx: Context, session: Session, run: Run) -> bool:
    row = store.present_round(session, run)
    step = step_of(store.phase_of(row), secure=row.secure) if row else None
    if row is None or step is None:
        return False
    contributions = store.contributions(session, row.id)
    members = store.members(contributions)
    verdict = settle(step, members, _needed(run, row, members), expired=_expired(ctx, run))
    late = () if isinstance(verdict, Wait) else verdict.silent
    for contribution in contributions:
        if contribution.node in late:
            drop(ctx, session, run, row, contribution, places.SILENT)
    if isinstance(verdict, Abandon):
        abandon(ctx, session, run, row, verdict.reason)
        return True
    if isinstance(verdict, Advance):
        enter(ctx, session, run, row, following(store.phase_of(row), secure=row.secure))
        return True
    return False


def drop(
    ctx: Context, session: Session, run: Run, row: Round, contribution: Contribution, reason: str
) -> None:
    """Out of this round; what the node gave before still counts."""
    contribution.dropped = reason[:REASON]
    ctx.metrics.counter("round_dropouts", "Nodes that dropped out of a round", ("phase",)).labels(
        row.phase
    ).inc()
    store.record(
        session,
        run.id,
        ctx.clock.now(),
        "dropped",
        round=row.number,
        node=contribution.node,
        phase=row.phase,
        reason=reason[:REASON],
    )


def _needed(run: Run, row: Round, members: Sequence[Member]) -> int:
    """With a sparse graph all whose updates are in the sum confirm whom they have masked with."""
    if row.phase != "confirming" or store.proposal_of(run).sparse is None:
        return row.needed
    return max(row.needed, len(at_least(members, Stage.ABSORBED)))


def enter(ctx: Context, session: Session, run: Run, row: Round, phase: Phase) -> None:
    """The round's next phase; its deadline, or its task."""
    row.phase = move_phase(store.phase_of(row), phase, secure=row.secure)
    step = step_of(phase, secure=row.secure)
    set_deadline(ctx, run, step.timeout if step else None)
    store.record(session, run.id, ctx.clock.now(), "round", round=row.number, phase=phase)
    if phase == "absorbing":
        ctx.jobs.enqueue_after(session, "rounds.absorb", row.id)
    elif phase == "opening":
        ctx.jobs.enqueue_after(session, "rounds.open", row.id)
    elif phase == "sharing":
        _check_roster(ctx, session, run, row)


def _check_roster(ctx: Context, session: Session, run: Run, row: Round) -> None:
    try:
        secure.roster(session, run, row)
    except PrimiaError as error:
        abandon(ctx, session, run, row, error.detail)


def abandon(ctx: Context, session: Session, run: Run, row: Round, reason: str) -> None:
    """Close the round without a result; try again under the next number, or fail the run."""
    dropped = "; ".join(
        f"{contribution.node}: {contribution.dropped}"
        for contribution in store.contributions(session, row.id)
        if contribution.dropped
    )
    said = f"{reason} ({dropped})" if dropped else reason
    close(ctx, session, row, "abandoned", said)
    store.record(
        session, run.id, ctx.clock.now(), "abandoned", round=row.number, reason=said[:REASON]
    )
    if run.repeats == 0 and row.purpose == "evaluate":  # the model is there, without figures
        settle_evaluations(session, run, row)
        return
    if run.repeats == 0:
        end(ctx, session, run, "failed", f"Round {row.number} was abandoned: {said}.")
        return
    run.repeats -= 1
    run.number += 1
    go_on(ctx, session, run)


def close(ctx: Context, session: Session, row: Round, phase: Phase, reason: str) -> None:
    row.phase = move_phase(store.phase_of(row), phase, secure=row.secure)
    row.reason, row.ended = reason[:REASON], ctx.clock.now()
    store.erase_secrets(session, row.id)
    ctx.metrics.counter("rounds", "Rounds of training ended", ("outcome",)).labels(phase).inc()
    seconds = (row.ended - row.started).total_seconds()
    ctx.metrics.histogram("round_seconds", "Seconds of a round").observe(seconds)


def _evaluate(ctx: Context, session: Session, run: Run) -> None:
    accepted = [row for row in store.sites(session, run.id) if row.state == "accepted"]
    waiting = [row for row in accepted if row.evaluation is None and row.failed is None]
    if waiting and not _expired(ctx, run):
        return
    for row in waiting:
        row.failed = places.SILENT
        store.record(
            session, run.id, ctx.clock.now(), "dropped", node=row.node, reason=places.SILENT
        )
    run.deadline = None
    ctx.jobs.enqueue_after(session, "rounds.finish", run.id)


def end(ctx: Context, session: Session, run: Run, state: RunState, reason: str = "") -> None:
    """The run's last word: its nodes are free and told, its files go."""
    row = store.present_round(session, run)
    run.state = move_run(store.state_of(run), state)
    run.reason, run.ended, run.deadline = reason[:REASON], ctx.clock.now(), None
    if row is not None and row.ended is None:
        close(ctx, session, row, "abandoned", f"the run was {state}")
    store.release(session, run.id)
    store.record(session, run.id, run.ended, state, reason=run.reason)
    ctx.metrics.counter("runs", "Training runs ended", ("state",)).labels(state).inc()
    ctx.jobs.enqueue_after(session, "rounds.clean", run.id)
    log.info("run ended", run=run.id, state=state, reason=run.reason)


def ended(run: Run) -> bool:
    return store.state_of(run) in ENDED
