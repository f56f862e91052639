"""What a round begins with at its sites: the item that the signatures of the round cover."""

from __future__ import annotations

from typing import Literal

from sqlalchemy.orm import Session

from primia.evaluation import sums
from primia.messages.rounds import Beginning, Candidate, Evaluate, Measure, Train
from services.model_owner.rounds import store
from services.model_owner.rounds.tables import Round, Run

# Of local training, and of the received model on validation images (data_node.training.figures).
_SCORED = 2


def of_round(session: Session, run: Run, row: Round) -> Beginning:
    """The same for all sites, as long as the round is the run's present one."""
    if row.purpose == "measure":
        return Measure(run=run.id, round=row.number)
    if row.purpose == "evaluate":
        return evaluate(session, run)
    return Train(
        run=run.id,
        round=row.number,
        done=run.done,
        weights_digest=run.weights_digest,
        weights_bytes=run.weights_bytes,
        statistics=store.statistics_of(run),
        summed=adding(session, run, "summed"),
    )


def evaluate(session: Session, run: Run) -> Evaluate:
    return Evaluate(
        run=run.id,
        round=run.number,
        weights_digest=run.weights_digest,
        weights_bytes=run.weights_bytes,
        others=tuple(
            Candidate(name=each.name, weights_digest=each.digest, weights_bytes=each.bytes)
            for each in store.others(run)
        ),
        statistics=store.statistics_of(run),
        summed=adding(session, run, "summed"),
        counted=adding(session, run, "counted"),
        tested=adding(session, run, "tested"),
    )


def adding(
    session: Session, run: Run, what: Literal["summed", "counted", "tested"]
) -> dict[str, int]:
    """The sites that add their figures to sums, as they have said in review."""
    if not store.proposal_of(run).sums_figures:
        return {}
    return {
        site.node: site.sums[what]
        for site in store.sites(session, run.id)
        if site.state == "accepted" and what in site.sums
    }


def integers(session: Session, run: Run, row: Round) -> int:
    """How many travel beside each update of the round."""
    adds = row.purpose == "train" and adding(session, run, "summed")
    return _SCORED * sums.SCORES if adds else 0


def evaluation_length(run: Run) -> int:
    """Values of the vector of a round that evaluates."""
    classes = len(store.proposal_of(run).model.classes)
    return (1 + len(store.others(run))) * (sums.SCORES + 2 * sums.counts_length(classes))
