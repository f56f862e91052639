"""Taking a study forward: look at the runs of its trials, prune, and start the next ones.

The caller holds the study's lease and row. Every function may be called again: it does what is
still to be done.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.orm import Session

from primia.chassis.context import Context
from primia.chassis.telemetry import get_logger
from primia.errors import Conflict, PrimiaError
from primia.messages.rounds import Scores
from primia.messages.runs import RunReport
from services.model_owner.rounds import store as rounds
from services.model_owner.rounds import views
from services.model_owner.rounds.course import measure
from services.model_owner.rounds.start import start
from services.model_owner.studies import domain, store
from services.model_owner.studies.ending import cancel_run, end
from services.model_owner.studies.store import Study, Trial

log = get_logger(__name__)


def advance(ctx: Context, session: Session, study: Study) -> None:
    rows = list(store.trials(session, study.id))
    for row in rows:
        if row.state == "running":
            _look(ctx, session, study, rows, row)
    if domain.is_hopeless([row.state for row in rows], study.continued):
        end(ctx, session, study, "failed", f"No trial succeeds: {rows[-1].reason}")
        return
    _start_next(ctx, session, study, rows)
    rows = list(store.trials(session, study.id))
    if len(rows) >= study.trials and all(row.state != "running" for row in rows):
        end(ctx, session, study, "finished")


def _look(ctx: Context, session: Session, study: Study, rows: Sequence[Trial], row: Trial) -> None:
    """What has become of a trial's run."""
    objective = store.request_of(study).objective
    run = rounds.find(session, row.run, lock=True)
    report = views.report(session, run)
    row.reports = [
        [done, value]
        for done, scores in enumerate(_measured(report), start=0)
        if (value := measure(scores, objective)) is not None
    ]
    if report.state == "finished":
        row.value = measure(report.final, objective) if report.final else None
        row.state = "failed" if row.value is None else "complete"
        row.reason = "" if row.value is not None else "No site measured the final model."
    elif report.state in ("failed", "cancelled"):
        row.state, row.reason = "failed", (report.reason or report.state)[: store.REASON]
    elif _is_worse(study, rows, row):
        cancel_run(ctx, session, row, "pruned", "Pruned: earlier trials were better by then.")
    session.flush()


def _is_worse(study: Study, rows: Sequence[Trial], row: Trial) -> bool:
    from services.model_owner.studies import search  # optuna: 150 MB, only where it is needed

    return search.is_worse(store.request_of(study), store.past(rows), row.number)


def _measured(report: RunReport) -> list[Scores]:
    """The models of the run by the rounds that made them, from the first, which none has made."""
    trained = [each for each in report.reports if each.purpose == "train" and each.phase == "done"]
    return [each.received for each in trained]


def _start_next(ctx: Context, session: Session, study: Study, rows: list[Trial]) -> None:
    from services.model_owner.studies import search  # optuna: 150 MB, only where it is needed

    request = store.request_of(study)
    places = domain.groups(request)
    taken = {row.place for row in rows if row.state == "running"}
    for place in sorted(set(range(len(places))) - taken):
        if len(rows) >= study.trials:
            return
        parameters = search.suggest(request, store.past(rows))
        if parameters is None:
            study.trials = len(rows)
            return
        row = Trial(
            study=study.id, number=len(rows), state="running", place=place, parameters=parameters,
            run="", reports=[],
        )  # fmt: skip
        try:
            wanted = domain.trial_run(request, parameters, places[place])
            row.run = start(ctx, session, wanted, study.created_by).id
        except Conflict as error:  # its sites are in another run: later
            log.info("a trial waits", study=study.id, reason=error.detail)
            return
        except PrimiaError as error:
            row.state, row.reason = "failed", error.detail[: store.REASON]
        session.add(row)
        session.flush()
        rows.append(row)
