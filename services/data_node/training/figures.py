"""This site's figures (losses, accuracies, counts of predictions): what the owner is told of them,
and what is added to sums in which no site's own can be seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from sqlalchemy.orm import Session

from primia.aggregation.state import NodeState
from primia.aggregation.terms import MAX_NODES
from primia.chassis.context import Context
from primia.errors import UnexpectedMessage
from primia.evaluation import sums
from primia.evaluation.sums import Sums
from primia.learning.manifest import DatasetManifest
from primia.messages.rounds import (
    Decision,
    Evaluate,
    Evaluation,
    ModelEvaluation,
    Proposal,
    Scores,
    Train,
    TrainReport,
)
from services.data_node.training import store
from services.data_node.training.domain import adding
from services.data_node.training.parts import split_for

NOTHING = Scores(samples=0)


def offered(ctx: Context, proposal: Proposal, manifest: DatasetManifest) -> dict[str, int]:
    """Fields of the Decision: what this site adds to the run's sums, if anything.

    Nothing where it lacks the images for it: others count on what it says here, and zeros would
    leave them alone in a sum. So nothing either of an external model, whose trainer need not
    measure anything.
    """
    if proposal.model.layout is not None:
        return {}
    least = ctx.settings.minimum_sites
    if not proposal.sums_figures or ctx.settings.share_scores != "sum" or least > MAX_NODES:
        return {}
    _, *watched = split_for(proposal, manifest)
    settings = proposal.training
    wanted = (settings.validation_fraction > 0, settings.test_fraction > 0)
    if wanted[0] and not len(watched[0]):
        return {}
    found = {"summed": least}
    for name, part, used in zip(("counted", "tested"), watched, wanted, strict=True):
        if used and len(part) >= ctx.settings.statistics_minimum:
            found[name] = least
    return found


def agreed(session: Session, run: str) -> Decision:
    """What this site has told the owner in review."""
    row = store.review_of(session, run)
    if row is None or row.answer is None:
        return Decision(accepted=False)
    try:
        return Decision.model_validate_json(row.answer)
    except ValueError:  # it answered with a failure
        return Decision(accepted=False)


def check_agreed(decision: Decision, item: Train | Evaluate, me: str) -> None:
    """The other sites count on what the item says of this one.

    Raises UnexpectedMessage where it says that this site adds more than it offered.
    """
    lists = {"scores": (item.summed, decision.summed)}
    if isinstance(item, Evaluate):
        lists["counts of predictions"] = (item.counted, decision.counted)
        lists["counts of tests"] = (item.tested, decision.tested)
    for what, (asked, offer) in lists.items():
        if asked.get(me, offer) != offer:
            raise UnexpectedMessage(
                f"The model owner says that {me} adds {what} to the run's sums, not as {me} "
                "offered it."
            )


def shows_own(ctx: Context, proposal: Proposal, decision: Decision) -> bool:
    """Whether the owner may see this site's own figures.

    A plain run has no sum to hide in: a site that joins one shows its update itself.
    """
    if proposal.privacy.central is not None or decision.summed is not None:
        return False
    mode = ctx.settings.share_scores
    return mode == "own" or (mode == "sum" and not proposal.secure)


def of_training(report: TrainReport) -> Sums:
    """Of local training, then of the received model on the site's validation images."""
    received = report.received or NOTHING
    return np.concatenate(
        [
            sums.of_scores(report.samples, report.loss, report.accuracy),
            _of_scores(received),
        ]
    )


def of_evaluation(evaluation: Evaluation, names: Iterable[str], classes: int) -> Sums:
    """Scores of every model, then counts of every model on validation images, then on test images:
    of the final one, then of those named."""
    models = [evaluation, *(evaluation.others[name] for name in names)]
    scores = [_of_scores(each.scores) for each in models]
    counts = [
        *(sums.of_counts(each.validation, classes) for each in models),
        *(sums.of_counts(each.test, classes) for each in models),
    ]
    return np.concatenate([*scores, *counts])


def _of_scores(scores: Scores) -> Sums:
    return sums.of_scores(scores.samples, scores.loss, scores.accuracy)


def added(values: Sums, item: Train | Evaluate, state: NodeState) -> Sums:
    """The values, with zeros in the place of what would not be hidden among enough other sites."""
    assert state.roster is not None  # keys are shared before anything is masked
    nodes, threshold = state.roster.nodes, state.roster.threshold
    parts: list[tuple[Mapping[str, int], slice]] = [(item.summed, slice(0, len(values)))]
    if isinstance(item, Evaluate):
        scores = sums.SCORES * item.models
        half = scores + (len(values) - scores) // 2
        parts = [
            (item.summed, slice(0, scores)),
            (item.counted, slice(scores, half)),
            (item.tested, slice(half, None)),
        ]
    found = np.zeros_like(values)
    for asked, span in parts:
        if state.node in adding(asked, nodes, threshold):
            found[span] = values[span]
    return found


def withheld(evaluation: Evaluation) -> Evaluation:
    """That this site has looked at each model, and nothing of what it found."""
    others = {name: ModelEvaluation(scores=NOTHING) for name in evaluation.others}
    return Evaluation(scores=NOTHING, others=others)
