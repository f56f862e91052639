"""The worker's tasks: absorb updates, open rounds, finish and clean runs; and the sweeps.

Each may run twice, or die anywhere: what it wrote counts from the transaction that records it, and
until then is written again, the same bytes under the same name.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import JsonValue
from sqlalchemy.orm import Session

from primia.chassis.context import Context
from primia.chassis.jobs import Sweep, Task
from primia.chassis.leases import Held, lease
from primia.chassis.telemetry import get_logger
from primia.errors import InvalidInput, PeerError, StorageFull
from primia.learning.statistics import Statistics
from primia.messages.rounds import ModelEvaluation, Scores
from services.model_owner.registry import store as registry
from services.model_owner.registry import weights
from services.model_owner.registry.domain import Size
from services.model_owner.registry.weights import Written, weights_path
from services.model_owner.rounds import opening, progress, store
from services.model_owner.rounds.course import BEST, LAST, Course, Model, choose
from services.model_owner.rounds.domain import CLOSED, Stage, absorbable
from services.model_owner.rounds.tables import Contribution, Round, Run, Site
from services.model_owner.rounds.uploads import round_file
from services.model_owner.rounds.views import final_scores, received_scores, training_scores

log = get_logger(__name__)
LEASE_SECONDS = 30


def absorb(ctx: Context, round_id: str) -> None:
    """Add every waiting update to the running sum.

    Looks again after the lease is given back: an update that came in between found it taken.
    """
    while not ctx.jobs.stopping() and _waiting(ctx, round_id) is not None:
        with lease(ctx.db, ctx.clock, Round, round_id, LEASE_SECONDS) as held:
            if held is None:
                return
            while not ctx.jobs.stopping() and _absorb_waiting(ctx, round_id, held):
                pass
        if held.lost.is_set():
            return
    _open_if_due(ctx, round_id)


def _open_if_due(ctx: Context, round_id: str) -> None:
    """A plain round is to be opened once all is absorbed: the task that was sent for it then may
    have found the round still held by the absorption."""
    with ctx.db.reading() as session:
        row = session.get(Round, round_id)
    if row is not None and row.phase == "opening":
        ctx.jobs.enqueue("rounds.open", round_id)


class Waiting(NamedTuple):
    """``waiting``: updates that may be counted now, in the order in which they are added;
    ``together``: those that lie beside the sum already, and these."""

    run: Run
    row: Round
    waiting: list[Contribution]
    together: list[Contribution]


def _waiting(ctx: Context, round_id: str) -> Waiting | None:
    with ctx.db.reading() as session:
        row = session.get(Round, round_id)
        if row is None or store.phase_of(row) in CLOSED:
            return None
        contributions = store.contributions(session, round_id)
        there = {each.node: each for each in contributions}
        names = absorbable(store.members(contributions), secure=row.secure)
        if not names:
            return None
        waiting = [there[name] for name in names]
        together = [*opening.held(contributions), *waiting]
        return Waiting(store.find(session, row.run), row, waiting, together)


def _absorb_waiting(ctx: Context, round_id: str, held: Held) -> bool:
    """Count those that are there; too many of them become one sum, read and written once."""
    found = _waiting(ctx, round_id)
    if found is None:
        return False
    run, row, _, together = found
    if len(together) <= opening.TOGETHER:
        return _absorbed(ctx, found, held)
    try:
        with _full_disk_is_told(ctx, run.id):
            opening.add_updates(ctx, run, row, together)
    except opening.Lost as error:
        # The run was ended and cleaned meanwhile; or the disk lost what it had confirmed.
        log.warning("an update could not be added", round=round_id, error=error.detail)
        return _lost_file(ctx, found, held)
    names = [each.upload or "" for each in together]
    if not _absorbed(ctx, found, held, summed=len(together)):
        return False
    opening.sum_file(ctx, run, row, row.summed).unlink(missing_ok=True)
    for name in names:
        round_file(ctx.files, run.id, row.number, name).unlink(missing_ok=True)
    return True


def _absorbed(ctx: Context, found: Waiting, held: Held, summed: int = 0) -> bool:
    """``summed``: how many there are in a new sum: all that wait or lay beside the old one."""
    with ctx.db.session() as session:
        run = store.find(session, found.run.id, lock=True)
        row = session.get_one(Round, found.row.id)
        added = [session.get_one(Contribution, (row.id, each.node)) for each in found.waiting]
        waits = all(each.stage == Stage.UPLOADED for each in added)
        closed = store.phase_of(row) in CLOSED
        if not waits or closed or row.summed != found.row.summed or held.lost.is_set():
            return False
        for each in added:
            each.stage = Stage.ABSORBED
        if summed:
            for each in found.together:
                session.get_one(Contribution, (row.id, each.node)).upload = None
            row.summed += summed
        session.flush()
        progress.advance(ctx, session, run)
    return True


@contextlib.contextmanager
def _full_disk_is_told(ctx: Context, run_id: str) -> Iterator[None]:
    """The run waits: its users read why, and the sweep tries again."""
    try:
        yield
    except StorageFull as error:
        with ctx.db.session() as session:
            now = ctx.clock.now()
            store.record_once(session, run_id, now, "waiting", reason=error.detail)
        raise


def _lost_file(ctx: Context, found: Waiting, held: Held) -> bool:
    with ctx.db.session() as session:
        run = store.find(session, found.run.id, lock=True)
        row = session.get_one(Round, found.row.id)
        there = [session.get_one(Contribution, (row.id, each.node)) for each in found.waiting]
        uploaded = all(each.stage == Stage.UPLOADED for each in there)
        unchanged = row.summed == found.row.summed and uploaded
        if unchanged and store.phase_of(row) not in CLOSED and not held.lost.is_set():
            progress.abandon(ctx, session, run, row, opening.Lost().detail)
            progress.advance(ctx, session, run)
    return False


def open_round(ctx: Context, round_id: str) -> None:
    """Remove the masks, take the mean, write the next global model, go on to the next round."""
    with lease(ctx.db, ctx.clock, Round, round_id, LEASE_SECONDS) as held:
        if held is None:
            return
        with ctx.db.reading() as session:
            row = session.get(Round, round_id)
            if row is None or row.phase != "opening":
                return
            run = store.find(session, row.run)
            try:
                result = _result(ctx, session, run, row)
            except (PeerError, InvalidInput, opening.Lost, FileNotFoundError) as error:
                reason = getattr(error, "detail", "the model is gone from the disk")
                result = None
        if result is None:
            _cannot_open(ctx, run.id, round_id, reason, held)
        else:
            _opened(ctx, run, row, result, held)


@dataclass(frozen=True, slots=True)
class _Trained:
    model: Written
    figures: opening.Figures | None


_Evaluated = dict[str, ModelEvaluation]
_Result = _Trained | Statistics | _Evaluated


def _result(ctx: Context, session: Session, run: Run, row: Round) -> _Result:
    if row.purpose == "evaluate":
        return opening.evaluations(ctx, session, run, row)
    if row.purpose == "measure":
        found = opening.statistics(ctx, session, run, row)
        if store.proposal_of(run).statistics.class_weights:
            found.class_weights()  # refused here rather than at every site
        return found
    update, figures = opening.mean_update(ctx, session, run, row)
    with _full_disk_is_told(ctx, run.id):
        return _Trained(opening.write_model(ctx, session, run, update), figures)


def _cannot_open(ctx: Context, run_id: str, round_id: str, reason: str, held: Held) -> None:
    with ctx.db.session() as session:
        run = store.find(session, run_id, lock=True)
        row = session.get_one(Round, round_id)
        if row.phase == "opening" and not held.lost.is_set():
            progress.abandon(ctx, session, run, row, reason)
            progress.advance(ctx, session, run)


def _opened(ctx: Context, before: Run, row_before: Round, result: _Result, held: Held) -> None:
    """One transaction makes what the round gave the run's; then the old files go."""
    with ctx.db.session() as session:
        run = store.find(session, before.id, lock=True)
        row = session.get_one(Round, row_before.id)
        if row.phase != "opening" or held.lost.is_set():
            return
        opened = _record_opening(ctx, session, run, row, result)
        session.flush()
        if row.purpose == "train":
            there = store.contributions(session, row.id)
            _measured(run, before, received_scores(row, there))
            _note_stopped(session, run, there)
        progress.close(ctx, session, row, "done", "")
        now = ctx.clock.now()
        store.record(session, run.id, now, "opened", round=row.number, node=None, **opened)
        if row.purpose == "evaluate":
            progress.settle_evaluations(session, run, row)
        else:
            progress.go_on(ctx, session, run)
        progress.advance(ctx, session, run)
        kept = Course.model_validate(run.course).best
    log.info("round opened", run=run.id, round=row.number, purpose=row.purpose)
    _forget_round(ctx, before, row_before, kept)


def _measured(run: Run, before: Run, received: Scores) -> None:
    """What the round's sites found of the model that it started from."""
    model = Model(
        name=BEST, path=before.weights, digest=before.weights_digest, bytes=before.weights_bytes
    )
    course = Course.model_validate(run.course).after(model, received, store.request_of(run))
    run.course = course.model_dump(mode="json")


def _note_stopped(session: Session, run: Run, there: Sequence[Contribution]) -> None:
    """Early stopping at a site has ended its training once the update that it stopped with counts:
    of a round that was abandoned its weights are nowhere, and it is asked again."""
    for each in there:
        if each.stage >= Stage.ABSORBED and each.report is not None:
            store.site(session, run.id, each.node).stopped = bool(each.report["stopped"])


def _record_opening(
    ctx: Context, session: Session, run: Run, row: Round, result: _Result
) -> dict[str, JsonValue]:
    """The run with what the round gave; what its event says of it."""
    if isinstance(result, Statistics):
        run.statistics, run.number = result.model_dump(mode="json"), row.number + 1
        return {"images": result.images}
    if not isinstance(result, _Trained):
        run.evaluation = {name: each.model_dump(mode="json") for name, each in result.items()}
        return result[LAST].scores.model_dump(mode="json")
    if result.figures is not None:
        row.figures = {
            "training": result.figures.training.model_dump(mode="json"),
            "received": result.figures.received.model_dump(mode="json"),
        }
    exactness = opening.quantisation(session, run, row)  # while the run has the round's weights
    path = opening.model_file(ctx, run, row.number + 1)
    run.done, run.number = run.done + 1, row.number + 1
    run.weights = str(path.relative_to(ctx.files.root))
    run.weights_digest, run.weights_bytes = result.model.digest, result.model.bytes
    scores = training_scores(row, store.contributions(session, row.id)).model_dump(mode="json")
    return {**scores, **exactness}


def _forget_round(ctx: Context, before: Run, row: Round, kept: Model | None) -> None:
    """All that is not needed any more, of abandoned rounds too; ``kept``: the best model so far."""
    for folder in (ctx.files.root / "runs" / before.id).glob("*/"):
        if folder.name.isdigit() and int(folder.name) <= row.number:
            shutil.rmtree(folder, ignore_errors=True)
    if row.purpose != "train":  # the weights stay
        return
    earlier = Course.model_validate(before.course).best
    for path in {before.weights, *([earlier.path] if earlier else [])}:
        if not path.startswith("runs/"):  # the first round's lie in the registry, and stay
            continue
        opening.moments_file(ctx, path).unlink(missing_ok=True)
        if kept is None or path != kept.path:
            (ctx.files.root / path).unlink(missing_ok=True)


def finish(ctx: Context, run_id: str) -> None:
    """Register the final model with its lineage and metrics; the run is finished."""
    with lease(ctx.db, ctx.clock, Run, run_id, LEASE_SECONDS) as held:
        if held is None:
            return
        with ctx.db.reading() as session:
            run = store.find(session, run_id)
            sites = store.sites(session, run_id)
            present = store.present_round(session, run)
        if run.state != "evaluating" or run.deadline is not None or present is not None:
            return
        model = _chosen(run, sites)
        try:
            if _makes_version(run):
                with _full_disk_is_told(ctx, run_id):
                    source = ctx.files.root / model.path
                    weights.copy(ctx.files, source, weights_path(ctx.files, run_id))
        except FileNotFoundError:
            _finish(ctx, run_id, held, None)
        else:
            _finish(ctx, run_id, held, model)


def _chosen(run: Run, sites: Sequence[Site]) -> Model:
    """The last round's model, or the best one before it, by the sites' validation images."""
    best = Course.model_validate(run.course).best
    evaluations = [
        {name: ModelEvaluation.model_validate(given) for name, given in each.items()}
        for each in (*(site.evaluations for site in sites), run.evaluation or {})
    ]
    if best is not None and choose(evaluations, store.request_of(run).selection) == BEST:
        return best
    return Model(name=LAST, path=run.weights, digest=run.weights_digest, bytes=run.weights_bytes)


def _finish(ctx: Context, run_id: str, held: Held, model: Model | None) -> None:
    with ctx.db.session() as session:
        run = store.find(session, run_id, lock=True)
        if run.state != "evaluating" or held.lost.is_set():
            return
        if model is None:
            progress.end(ctx, session, run, "failed", "The final model is gone from the disk.")
            return
        run.weights, run.weights_digest, run.weights_bytes = model.path, model.digest, model.bytes
        run.course = {**run.course, "chosen": model.name}
        for site in store.sites(session, run_id):
            if model.name in site.evaluations:
                site.evaluation = site.evaluations[model.name]["scores"]
        if _makes_version(run):
            _register(ctx, session, run)
        progress.end(ctx, session, run, "finished")


def _makes_version(run: Run) -> bool:
    return run.rounds > 0 and store.request_of(run).keep


def _register(ctx: Context, session: Session, run: Run) -> None:
    row = registry.add_version(
        session,
        run.model,
        "trained",
        run.created_by,
        ctx.clock.now(),
        image_size=store.request_of(run).training.image_size,
        parent=run.version,
        run=run.id,
        normalisation=_normalisation(session, run),
    )
    final = final_scores(run, store.sites(session, run.id))
    registry.settle(
        row,
        digest=run.weights_digest,
        size=run.weights_bytes,
        layout=Size(run.parameters, run.buffers),
        metrics=final.model_dump(mode="json") if final else None,
    )
    run.final_version = row.version


def _normalisation(session: Session, run: Run) -> dict[str, Any] | None:
    """What the run's sites trained with: measured, or that of the version it started from."""
    found = store.statistics_of(run)
    if found is None or not store.proposal_of(run).statistics.normalise:
        return registry.find_version(session, run.model, run.version).normalisation
    mean, std = found.normalisation()
    return {"mean": list(mean), "std": list(std)}


def clean(ctx: Context, run_id: str) -> None:
    """The files of a run that has ended."""
    with ctx.db.reading() as session:
        run = store.find(session, run_id)
    if not progress.ended(run):
        return
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(ctx.files.path("runs", run_id))
    with ctx.db.session() as session:
        store.find(session, run_id, lock=True).cleaned = True


def deadlines(ctx: Context) -> None:
    """Take every run whose time is up forward."""
    with ctx.db.reading() as session:
        due = store.due(session, ctx.clock.now())
        active = store.active_runs(session)
    ctx.metrics.gauge("active_runs", "Training runs that have not ended").set(active)
    for run_id in due:
        with ctx.db.session() as session:
            progress.advance(ctx, session, store.find(session, run_id, lock=True))


def resend(ctx: Context) -> None:
    """Send again what the broker or a worker lost."""
    with ctx.db.reading() as session:
        now = ctx.clock.now()
        lost = {
            "rounds.absorb": store.wanting_absorption(session, now),
            "rounds.open": store.wanting_opening(session, now),
            "rounds.finish": store.wanting_finish(session, now),
            "rounds.clean": store.wanting_cleaning(session),
        }
    for task, rows in lost.items():
        for row_id in rows:
            ctx.jobs.enqueue(task, row_id)


TASKS: Mapping[str, Task] = {
    "rounds.absorb": absorb,
    "rounds.open": open_round,
    "rounds.finish": finish,
    "rounds.clean": clean,
}
SWEEPS: Mapping[str, tuple[float, Sweep]] = {
    "rounds.deadlines": (1.0, deadlines),
    "rounds.resend": (10.0, resend),
}
