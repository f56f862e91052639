"""Taking a study forward: look at the runs of its trials, prune, and start the next ones.

The caller holds the study's lease and row. Every function may be called again: it does what is
still to be done.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.orm import Session

from primia.chassis.context import Context
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
    """A trial at every group of sites that is free; the study says what others wait for."""
    from services.model_owner.studies import search  # optuna: 150 MB, only where it is needed

    request = store.request_of(study)
    taken = {row.place for row in rows if row.state == "running"}
    waiting: list[str] = []
    for place, nodes in enumerate(domain.groups(request)):
        if place in taken:
            continue
        if len(rows) >= study.trials:
            break
        parameters = search.suggest(request, store.past(rows))
        if parameters is None:
            study.trials = len(rows)
            break
        row = Trial(
            study=study.id, number=len(rows), state="running", place=place, parameters=parameters,
            run="", reports=[],
        )  # fmt: skip
        because = _started(ctx, session, study, row, nodes)
        if because is not None:
            waiting.append(because)
            continue
        session.add(row)
        session.flush()
        rows.append(row)
    study.reason = "; ".join(f"A trial waits: {each}" for each in waiting)[: store.REASON]


def _started(
    ctx: Context, session: Session, study: Study, row: Trial, nodes: Sequence[str]
) -> str | None:
    """The trial with its run, or failed; or why it has to wait."""
    try:
        wanted = domain.trial_run(store.request_of(study), row.parameters, nodes, study.versions)
        row.run = start(ctx, session, wanted, study.created_by).id
    except PrimiaError as error:
        # Its sites are in another run, or a version is still prepared; a failed one stays so.
        if isinstance(error, Conflict) and error.extra.get("state") != "failed":
            return error.detail
        row.state, row.reason = "failed", error.detail[: store.REASON]
    return None
