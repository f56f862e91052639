"""Sums and new global models: the worker's part of a round, as functions of files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue
from sqlalchemy.orm import Session

from primia.aggregation import server
from primia.aggregation.errors import InvalidUpdate
from primia.aggregation.masking import Words
from primia.aggregation.plain import weighted_sum
from primia.aggregation.quantise import step as quantisation_step
from primia.aggregation.roster import Roster
from primia.aggregation.survivors import Outcome
from primia.aggregation.wire import HEADER_BYTES, Header, Kind, read_integers
from primia.chassis.context import Context
from primia.chassis.telemetry import get_logger
from primia.errors import LocalError, MalformedMessage
from primia.evaluation import sums
from primia.learning.layout import Vector
from primia.learning.server import Moments, step
from primia.learning.statistics import Statistics
from primia.messages.rounds import ModelEvaluation, Scores
from services.model_owner.registry import store as registry
from services.model_owner.registry import weights
from services.model_owner.registry.weights import Written
from services.model_owner.rounds import answers, beginning, secure, store
from services.model_owner.rounds.course import LAST
from services.model_owner.rounds.domain import Stage
from services.model_owner.rounds.tables import Contribution, Round, Run
from services.model_owner.rounds.uploads import kind_of, round_file

log = get_logger(__name__)
# Updates that wait on the disk until a sum is written: it is as large as one, or as two plain ones,
# and in a round of no more sites there is none at all: they are added up when it is opened.
TOGETHER = 8


class Lost(LocalError):
    """What the disk had confirmed is not there."""

    code = "lost-update"
    title = "An update was lost"
    status = 500

    def __init__(self) -> None:
        super().__init__("An update or the sum is not on the disk as it was.")


def sum_file(ctx: Context, run: Run, row: Round, summed: int) -> Path:
    """The running sum of the round's first ``summed`` updates."""
    return round_file(ctx.files, run.id, row.number, f"sum-{summed}")


def held(contributions: Sequence[Contribution]) -> list[Contribution]:
    """Those that count and still lie beside the sum, in the order in which they are added."""
    there = [each for each in contributions if each.upload and each.stage >= Stage.ABSORBED]
    return sorted(there, key=lambda each: each.node)


def add_updates(ctx: Context, run: Run, row: Round, added: Sequence[Contribution]) -> None:
    """Write the sum with these updates, added in this order, from the one without them: first the
    integers that travelled beside them, then the values. Raises Lost, StorageFull."""
    with ctx.db.reading() as session:
        integers = beginning.integers(session, run, row)
    count, dtype = secure.groups(run, row).size, _sum_dtype(row)
    ctx.files.require(8 * integers + np.dtype(dtype).itemsize * count)
    after = sum_file(ctx, run, row, row.summed + len(added))
    with (
        _summing(ctx, run, row, added, integers) as (beside, pieces),
        ctx.files.replacing(after) as written,
    ):
        written.write(beside.view(np.uint8).data)
        for _, piece in pieces:
            written.write(piece.view(np.uint8).data)


@contextlib.contextmanager
def _summing(
    ctx: Context, run: Run, row: Round, added: Sequence[Contribution], integers: int
) -> Iterator[tuple[NDArray[np.uint64], Iterator[tuple[slice, NDArray[Any]]]]]:
    """The sum so far with these updates: its integers, and its values piece by piece."""
    count, kind = secure.groups(run, row).size, kind_of(row)
    with contextlib.ExitStack() as files:
        try:
            before, updates = _opened_files(ctx, run, row, added, files)
            beside = np.zeros(integers, dtype=Kind.INTEGERS.dtype)
            for file in (*updates, *([before] if before else [])):
                beside += read_integers(file, integers)
            if row.secure:
                yield beside, server.masked_sum(count, updates, kind, before)
            else:
                weighed = list(zip(updates, map(_images, added), strict=True))
                yield beside, weighted_sum(count, weighed, before)
        except (FileNotFoundError, MalformedMessage, InvalidUpdate) as error:
            raise Lost from error


def _opened_files(
    ctx: Context, run: Run, row: Round, added: Sequence[Contribution], files: contextlib.ExitStack
) -> tuple[BufferedReader | None, list[BufferedReader]]:
    """The sum so far, if there is one, and the updates behind their headers."""
    before = None
    if row.summed:
        before = files.enter_context(sum_file(ctx, run, row, row.summed).open("rb"))
    updates = []
    for each in added:
        path = round_file(ctx.files, run.id, row.number, each.upload or "")
        updates.append(files.enter_context(path.open("rb")))
        Header.parse(updates[-1].read(HEADER_BYTES))
    return before, updates


def _images(contribution: Contribution) -> int:
    assert contribution.report is not None  # of a site that has trained
    return int(contribution.report["samples"])


def _sum_dtype(row: Round) -> str:
    return kind_of(row).dtype if row.secure else "<f8"


def _masked_total(
    ctx: Context, session: Session, run: Run, row: Round
) -> tuple[NDArray[np.uint64], NDArray[Any]]:
    """(integers,) and (count,): the sum of a secure round, still masked."""
    integers = beginning.integers(session, run, row)
    total = np.empty(secure.groups(run, row).size, dtype=_sum_dtype(row))
    added = held(store.contributions(session, row.id))
    with _summing(ctx, run, row, added, integers) as (beside, pieces):
        for part, piece in pieces:
            total[part] = piece
    return beside, total


def _plain_mean(ctx: Context, session: Session, run: Run, row: Round) -> Vector:
    mean = np.empty(secure.groups(run, row).size, dtype=np.float32)
    contributions = store.contributions(session, row.id)
    samples = sum(_images(each) for each in contributions if each.stage >= Stage.ABSORBED)
    with _summing(ctx, run, row, held(contributions), 0) as (_, pieces):
        for part, total in pieces:
            np.divide(total, samples, out=total)
            mean[part] = total
    return mean


@dataclass(frozen=True, slots=True)
class Figures:
    """Of local training, and of the received model on validation images, over the sites that show
    none of their own."""

    training: Scores
    received: Scores


def mean_update(
    ctx: Context, session: Session, run: Run, row: Round
) -> tuple[Vector, Figures | None]:
    """The weighted mean of the survivors' changes, float32 (values,), and the figures beside it.

    Raises Lost; BelowThreshold or InconsistentRound where the masks cannot be removed.
    """
    if not row.secure:
        return _plain_mean(ctx, session, run, row), None
    masked: NDArray[np.uint32]
    beside, masked = _masked_total(ctx, session, run, row)
    roster = secure.roster(session, run, row)
    outcome = secure.outcome(session, row, roster)
    _unmask(ctx, session, row, roster, outcome, masked, beside)
    return server.mean(masked, roster, outcome, masked.view(np.float32)), _figures(beside)


def _figures(total: sums.Sums) -> Figures | None:
    """None where none were summed, or a site has added what cannot be: the model is as it is."""
    if not len(total):
        return None
    try:
        training, received = (_scores(part) for part in np.split(total, 2))
    except sums.Contradictory as error:
        log.warning("figures contradict themselves", detail=error.detail)
        return None
    return Figures(training, received)


def _scores(total: sums.Sums) -> Scores:
    found = sums.scores(total)
    return Scores(samples=found.samples, loss=found.loss, accuracy=found.accuracy)


def evaluations(ctx: Context, session: Session, run: Run, row: Round) -> dict[str, ModelEvaluation]:
    """Of each model, over the sites that show none of their own. Raises as ``mean_update``, or
    sums.Contradictory."""
    total: sums.Sums
    _, total = _masked_total(ctx, session, run, row)
    roster = secure.roster(session, run, row)
    _unmask(ctx, session, row, roster, secure.outcome(session, row, roster), total)
    names = [LAST, *(each.name for each in store.others(run))]
    classes = len(store.proposal_of(run).model.classes)
    scores = np.split(total[: sums.SCORES * len(names)], len(names))
    counts = np.split(total[sums.SCORES * len(names) :], 2 * len(names))
    return {
        name: ModelEvaluation(
            scores=_scores(scores[at]),
            validation=sums.counts(counts[at], classes),
            test=sums.counts(counts[len(names) + at], classes),
        )
        for at, name in enumerate(names)
    }


def quantisation(session: Session, run: Run, row: Round) -> dict[str, JsonValue]:
    """The most by which the opened mean may differ from the exact one, in each group of values."""
    if not row.secure:
        return {}
    roster = secure.roster(session, run, row)
    survivors = secure.survivors(session, row)
    weight = roster.weight(survivors)
    parameters, buffers = (
        quantisation_step(each, len(survivors), weight) for each in roster.exponents
    )
    return {"quantisation_step": {"parameters": parameters, "buffers": buffers}}


def statistics(ctx: Context, session: Session, run: Run, row: Round) -> Statistics:
    """What the sum of a measuring round says. Raises as ``mean_update``, or Contradictory."""
    card = store.proposal_of(run).model
    total: NDArray[np.uint64]
    _, total = _masked_total(ctx, session, run, row)
    roster = secure.roster(session, run, row)
    _unmask(ctx, session, row, roster, secure.outcome(session, row, roster), total)
    size = store.request_of(run).training.image_size
    return Statistics.of(total, len(card.classes), card.channels, size)


def _unmask(
    ctx: Context,
    session: Session,
    row: Round,
    roster: Roster,
    outcome: Outcome,
    total: Words,
    beside: NDArray[np.uint64] | None = None,
) -> None:
    reveals = {
        contribution.node: ctx.secrets.open(
            contribution.reveal, answers.purpose(row, contribution.node)
        )
        for contribution in store.contributions(session, row.id)
        if contribution.reveal is not None
    }
    envelopes = secure.envelopes(session, row)
    recovered = server.recover(roster, envelopes, outcome, reveals)
    server.remove_masks(total, roster, outcome, recovered)
    if beside is not None and len(beside):
        server.remove_masks_beside(beside, roster, outcome, recovered)


def model_file(ctx: Context, run: Run, number: int) -> Path:
    return ctx.files.path("runs", run.id, f"weights-{number}.safetensors")


def moments_file(ctx: Context, weights: str) -> Path:
    """The server optimiser's moments that belong to the weights of a run."""
    return (ctx.files.root / weights).with_suffix(".moments")


def _step(ctx: Context, run: Run, vector: Vector, update: Vector) -> None:
    """The weights in place; the moments beside the next weights, from those beside the present."""
    config = store.request_of(run).server
    if config.kind == "average":
        vector += update
        return
    moments = Moments.initial(run.parameters, config)
    if run.weights.startswith("runs/"):
        data = moments_file(ctx, run.weights).read_bytes()
        moments = Moments.from_bytes(data, run.parameters, config)
    step(vector, update, run.parameters, config, moments)
    following = model_file(ctx, run, run.number + 1).with_suffix(".moments")
    ctx.files.write(following, moments.to_bytes())


def write_model(ctx: Context, session: Session, run: Run, update: Vector) -> Written:
    """The next global model: the present one plus the mean update. Raises InvalidState."""
    spec = registry.spec_of(registry.find_model(session, run.model))
    layout = weights.layout_of(ctx.files, spec)
    vector = weights.read(ctx.files.root / run.weights, layout)
    _step(ctx, run, vector, update)
    metadata: dict[str, object] = {"model": run.model, "run": run.id, "rounds": run.done + 1}
    return weights.write(ctx.files, model_file(ctx, run, run.number + 1), vector, layout, metadata)
