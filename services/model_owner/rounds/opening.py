"""Sums and new global models: the worker's part of a round, as functions of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue
from sqlalchemy.orm import Session

from primia.aggregation import server
from primia.aggregation.masking import Words
from primia.aggregation.plain import WeightedMean
from primia.aggregation.quantise import step as quantisation_step
from primia.aggregation.roster import Roster
from primia.aggregation.survivors import Outcome
from primia.aggregation.wire import HEADER_BYTES
from primia.chassis.context import Context
from primia.learning.layout import Vector
from primia.learning.server import Moments, step
from primia.learning.statistics import Statistics
from services.model_owner.registry import store as registry
from services.model_owner.registry import weights
from services.model_owner.registry.weights import Written
from services.model_owner.rounds import answers, secure, store
from services.model_owner.rounds.domain import Stage
from services.model_owner.rounds.tables import Contribution, Round, Run
from services.model_owner.rounds.uploads import kind_of, round_file


def sum_file(ctx: Context, run: Run, row: Round, summed: int) -> Path:
    """The running sum of the round's first ``summed`` updates."""
    return round_file(ctx.files, run.id, row.number, f"sum-{summed}")


def add_updates(ctx: Context, run: Run, row: Round, contributions: list[Contribution]) -> None:
    """Write the sum with these updates, added in this order, from the one without them."""
    count, kind = secure.groups(run, row).size, kind_of(row)
    total = _read_sum(ctx, run, row, count, kind.dtype if row.secure else "<f8")  # (count,)
    for contribution in contributions:
        assert contribution.upload is not None  # of stage UPLOADED
        assert contribution.report is not None
        update = round_file(ctx.files, run.id, row.number, contribution.upload)
        with update.open("rb") as file:
            file.seek(HEADER_BYTES)
            if row.secure:
                server.RunningSum(count, total, kind).add(file)
            else:
                WeightedMean(count, total).add(file, int(contribution.report["samples"]))
    after = sum_file(ctx, run, row, row.summed + len(contributions))
    ctx.files.write(after, total.view(np.uint8).data)


def _read_sum(ctx: Context, run: Run, row: Round, count: int, dtype: str) -> NDArray[Any]:
    if row.summed == 0:
        return np.zeros(count, dtype=dtype)
    return np.fromfile(sum_file(ctx, run, row, row.summed), dtype=dtype)


def mean_update(ctx: Context, session: Session, run: Run, row: Round) -> Vector:
    """The weighted mean of the survivors' changes, float32 (values,).

    Raises BelowThreshold or InconsistentRound where the masks cannot be removed.
    """
    count = secure.groups(run, row).size
    if not row.secure:
        total = _read_sum(ctx, run, row, count, "<f8")
        return WeightedMean(count, total, _samples(session, row)).result()
    masked: NDArray[np.uint32] = _read_sum(ctx, run, row, count, "<u4")
    roster = secure.roster(session, run, row)
    outcome = secure.outcome(session, row, roster)
    _unmask(ctx, session, row, roster, outcome, masked)
    return server.mean(masked, roster, outcome, masked.view(np.float32))


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
    sums: NDArray[np.uint64] = _read_sum(ctx, run, row, secure.groups(run, row).size, "<u8")
    roster = secure.roster(session, run, row)
    _unmask(ctx, session, row, roster, secure.outcome(session, row, roster), sums)
    size = store.request_of(run).training.image_size
    return Statistics.of(sums, len(card.classes), card.channels, size)


def _unmask(
    ctx: Context, session: Session, row: Round, roster: Roster, outcome: Outcome, total: Words
) -> None:
    reveals = {
        contribution.node: ctx.secrets.open(
            contribution.reveal, answers.purpose(row, contribution.node)
        )
        for contribution in store.contributions(session, row.id)
        if contribution.reveal is not None
    }
    envelopes = secure.envelopes(session, row)
    server.remove_masks(total, roster, outcome, server.recover(roster, envelopes, outcome, reveals))


def _samples(session: Session, row: Round) -> int:
    return sum(
        int(contribution.report["samples"])
        for contribution in store.contributions(session, row.id)
        if contribution.stage >= Stage.ABSORBED and contribution.report
    )


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
    layout = weights.layout_of(registry.spec_of(registry.find_model(session, run.model)))
    vector = weights.read(ctx.files.root / run.weights, layout)
    _step(ctx, run, vector, update)
    metadata: dict[str, object] = {"model": run.model, "run": run.id, "rounds": run.done + 1}
    return weights.write(ctx.files, model_file(ctx, run, run.number + 1), vector, layout, metadata)
