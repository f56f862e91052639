"""Which sites a round asks, and when no further round would help."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy.orm import Session

from primia.chassis.context import Context
from services.model_owner.registry import store as registry
from services.model_owner.rounds import store
from services.model_owner.rounds.course import Course
from services.model_owner.rounds.domain import drawn
from services.model_owner.rounds.tables import Run

SILENT = "It did not answer in time."
# A node asks for work every few seconds while it is there, in training too.
_AWAY = timedelta(seconds=120)


def of_round(ctx: Context, session: Session, run: Run) -> tuple[str, ...]:
    """Of the sites that accepted, have not left and are not away: all, or as many as are drawn."""
    request = store.request_of(run)
    willing = _willing(session, run)
    away = _away(ctx, session, run)
    present = [node for node in willing if node not in away]
    asked = present if len(present) >= run.needed else willing
    sites = request.aggregation.sites_per_round
    return drawn(asked, sites, request.training.seed, run.number)


def measures(run: Run) -> bool:
    """Whether the run's next round sums statistics."""
    return run.statistics is None and store.proposal_of(run).statistics.wanted


def of_all(ctx: Context, session: Session, run: Run) -> tuple[str, ...]:
    """All sites that are there, those too that train no more, whatever share of them a round of
    training asks."""
    accepted = tuple(row.node for row in store.sites(session, run.id) if row.state == "accepted")
    away = _away(ctx, session, run)
    present = tuple(node for node in accepted if node not in away)
    needed = store.proposal_of(run).measuring_threshold
    return present if len(present) >= needed else accepted


def enough(session: Session, run: Run) -> str | None:
    """Why the run ends before its last round, if it does."""
    course = Course.model_validate(run.course)
    if course.stopped:
        return f"No better model in {course.waited} rounds."
    accepted = [row for row in store.sites(session, run.id) if row.state == "accepted"]
    if all(row.stopped for row in accepted):
        return "Early stopping has ended training at every site."
    willing = _willing(session, run)
    if len(willing) < run.needed:
        return f"{len(willing)} sites still train; {run.needed} are needed."
    return None


def _willing(session: Session, run: Run) -> list[str]:
    rule = store.request_of(run).training.local_stopping
    leaves = rule is not None and rule.when_stopped == "leave"
    return [
        row.node
        for row in store.sites(session, run.id)
        if row.state == "accepted" and not (leaves and row.stopped)
    ]


def _away(ctx: Context, session: Session, run: Run) -> set[str]:
    """Silent when it was asked last, and not heard of since: not worth a timeout again."""
    last: dict[str, str | None] = {}  # node -> why it was dropped from its last round, if it was
    by_round = store.contributions_of(session, run.id)
    for before in store.rounds(session, run.id):
        if before.number < run.number:
            last.update({row.node: row.dropped for row in by_round.get(before.id, ())})
    seen, since = registry.visits(session), ctx.clock.now() - _AWAY
    return {
        node
        for node, dropped in last.items()
        if dropped == SILENT and not (node in seen and seen[node] > since)
    }
