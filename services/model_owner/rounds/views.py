"""Rows as the reports that users read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from sqlalchemy.orm import Session

from primia.aggregation.graph import degree
from primia.messages.rounds import ModelEvaluation, Proposal, Scores
from primia.messages.runs import (
    RoundGraph,
    RoundReport,
    RunEvent,
    RunReport,
    RunSummary,
    SiteInRound,
    SiteInRun,
)
from services.model_owner.rounds import store
from services.model_owner.rounds.course import Course
from services.model_owner.rounds.domain import Stage
from services.model_owner.rounds.measures import Measure, weighted
from services.model_owner.rounds.tables import Contribution, Event, Round, Run, Site

NOTHING = Scores(samples=0)


def mean(measures: Iterable[Measure]) -> Scores:
    found = weighted(measures)
    return Scores(samples=found.samples, loss=found.loss, accuracy=found.accuracy)


def _measure(scores: Scores) -> Measure:
    return Measure(scores.samples, scores.loss, scores.accuracy)


def training_scores(of: Round, rows: Sequence[Contribution]) -> Scores:
    """Of local training, over the sites whose update is in the sum, or else all that trained: those
    that show their own, and the sum over those that do not."""
    counted = [row for row in rows if row.stage >= Stage.ABSORBED] or rows
    shown = [
        Measure(int(row.report["samples"]), row.report["loss"], row.report["accuracy"])
        for row in counted
        if row.report and "loss" in row.report
    ]
    summed = _summed(of, "training")
    if summed.samples:
        shown = [each for each in shown if each.loss is not None]
    return mean([*shown, summed])


def received_scores(of: Round, rows: Sequence[Contribution]) -> Scores:
    """Of the model that the round started from, over all sites that measured it."""
    measured = [row.report["received"] for row in rows if row.report and row.report.get("received")]
    shown = [_measure(Scores.model_validate(scores)) for scores in measured]
    return mean([*shown, _summed(of, "received")])


def _summed(of: Round, what: Literal["training", "received"]) -> Measure:
    """Over the sites that show none of their own."""
    return _measure(Scores.model_validate(of.figures[what]) if of.figures else NOTHING)


def final_scores(run: Run, sites: Sequence[Site]) -> Scores | None:
    """Of the final model; None before any site has measured it."""
    measured = [Scores.model_validate(site.evaluation) for site in sites if site.evaluation]
    summed = (run.evaluation or {}).get(Course.model_validate(run.course).chosen)
    if summed is not None:
        measured.append(ModelEvaluation.model_validate(summed).scores)
    return mean(_measure(scores) for scores in measured) if measured else None


def summary(run: Run) -> RunSummary:
    return RunSummary.model_validate(_summary(run))


def _summary(run: Run) -> dict[str, object]:
    return {
        "id": run.id,
        "state": run.state,
        "reason": run.reason,
        "model": run.model,
        "version": run.version,
        "final_version": run.final_version,
        "nodes": run.request["nodes"],
        "rounds": run.rounds,
        "rounds_done": run.done,
        "secure": run.secure,
        "threshold": run.needed,
        "created": run.created,
        "created_by": run.created_by,
        "ended": run.ended,
    }


def report(session: Session, run: Run) -> RunReport:
    sites = store.sites(session, run.id)
    final = final_scores(run, sites)
    return RunReport.model_validate(
        {
            **_summary(run),
            "request": store.request_of(run),
            "proposal": store.proposal_of(run),
            "statistics": store.statistics_of(run),
            "client_epsilon": _client_epsilon(run),
            "sites": tuple(_site(site) for site in sites),
            "final": final,
            **_rounds(session, run, final),
        }
    )


def _client_epsilon(run: Run) -> float | None:
    central = store.proposal_of(run).privacy.central
    return None if central is None else central.epsilon(run.done)


def _site(site: Site) -> SiteInRun:
    return SiteInRun(
        node=site.node,
        state=store.site_state(site),
        reason=site.failed or site.reason,
        samples=site.samples,
        summed="summed" in site.sums,
        final=Scores.model_validate(site.evaluation) if site.evaluation else None,
    )


def _rounds(session: Session, run: Run, final: Scores | None) -> dict[str, tuple[RoundReport, ...]]:
    """What a round made is what the next one received, and the last one's is evaluated."""
    rows = store.rounds(session, run.id)
    contributions = store.contributions_of(session, run.id)
    steps = store.quantisation_steps(session, run.id)
    proposal = store.proposal_of(run)
    reports: list[RoundReport] = []
    result = final
    summing = [row for row in rows if row.purpose == "evaluate"]
    for row in reversed(rows):
        if row in summing:
            continue
        places = contributions.get(row.id, [])
        made = _round(proposal, row, places, _made(row, result))
        reports.append(made.model_copy(update={"quantisation_step": steps.get(row.number)}))
        received = reports[-1].received
        result = received if received.samples else (None if row.phase == "done" else result)
    return {
        "reports": tuple(reversed(reports)),
        "evaluations": tuple(
            _round(proposal, row, contributions.get(row.id, []), None) for row in summing
        ),
    }


def _made(row: Round, result: Scores | None) -> Scores | None:
    return result if row.phase == "done" and row.purpose == "train" else None


def _graph(proposal: Proposal, row: Round, places: Sequence[Contribution]) -> RoundGraph | None:
    """None where all mask with all, and before the roster is complete."""
    assumed = proposal.assumed(measuring=row.purpose != "train")
    complete = row.phase not in ("training", "abandoned") or any(
        place.stage >= Stage.SHARED for place in places
    )
    if not row.secure or assumed is None or not complete:
        return None
    sites = sum(place.stage >= Stage.TRAINED for place in places)
    found = degree(sites, assumed)
    return RoundGraph(
        sites=sites,
        neighbours=sites - 1 if found is None else found.neighbours,
        share_threshold=row.needed if found is None else found.threshold,
    )


def _round(
    proposal: Proposal, row: Round, places: Sequence[Contribution], result: Scores | None
) -> RoundReport:
    return RoundReport(
        number=row.number,
        purpose=store.purpose_of(row),
        phase=row.phase,
        reason=row.reason,
        started=row.started,
        ended=row.ended,
        training=training_scores(row, places),
        received=received_scores(row, places),
        result=result,
        graph=_graph(proposal, row, places),
        sites=tuple(_place(place) for place in places),
    )


def _place(place: Contribution) -> SiteInRound:
    report = place.report or {}
    return SiteInRound.model_validate(
        {
            "node": place.node,
            "stage": Stage(place.stage).name.lower(),
            "dropped": place.dropped,
            "samples": report.get("samples", 0),
            "loss": report.get("loss"),
            "accuracy": report.get("accuracy"),
            "received": report.get("received"),
            "seconds": report.get("seconds"),
            "bytes_up": place.bytes_up,
            "bytes_down": place.bytes_down,
        }
    )


def event(row: Event) -> RunEvent:
    return RunEvent(
        id=row.id, at=row.at, kind=row.kind, round=row.round, node=row.node, detail=row.detail
    )
