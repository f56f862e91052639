"""Validation: every file is read and what is wrong with it kept, so that it can be mended."""

from __future__ import annotations

from pathlib import Path

from primia.chassis.context import Context
from primia.chassis.jobs import Sweep, Task
from primia.chassis.leases import lease
from primia.chassis.telemetry import get_logger
from primia.errors import PrimiaError
from primia.learning import datasets, masks
from primia.learning.datasets import Inspection, Progress
from services.data_node.datasets import store
from services.data_node.datasets.store import Dataset

log = get_logger(__name__)


class _Stopped(Exception):  # never leaves this module
    """The worker is asked to end; the sweep starts the validation again elsewhere."""


def validate(ctx: Context, dataset_id: str) -> None:
    with lease(ctx.db, ctx.clock, Dataset, dataset_id) as held:
        if held is None:
            return
        with ctx.db.reading() as session:
            row = session.get(Dataset, dataset_id)
        if row is None or row.state != "validating":
            return
        try:
            found = _inspected(row, lambda _done, _all: _go_on(ctx))
        except _Stopped:
            return
        except PrimiaError as error:
            _reject(ctx, dataset_id, error.detail)
            return
        if not held.lost.is_set():
            _settle(ctx, dataset_id, found)


def _inspected(row: Dataset, progress: Progress) -> Inspection:
    place, pattern = Path(row.place), row.patient_pattern
    if row.kind == "masks":
        return masks.inspect(masks.scan_folder(place, pattern), progress)
    scan = datasets.scan_csv if row.kind == "csv" else datasets.scan_folder
    return datasets.inspect(scan(place, patient_pattern=pattern), progress)


def _go_on(ctx: Context) -> None:
    if ctx.jobs.stopping():
        raise _Stopped


def _settle(ctx: Context, dataset_id: str, found: Inspection) -> None:
    with ctx.db.session() as session:
        row = session.get(Dataset, dataset_id, with_for_update=True)
        if row is None or row.state != "validating":
            return
        wrong = ((each.path, each.severity, each.reason) for each in found.problems)
        store.keep_problems(session, row, wrong, len(found.errors))
        reason = store.judge(row, found)
        if found.manifest is None or reason is not None:
            store.reject(row, reason or "It holds no usable images.", ctx.clock.now())
        else:
            store.accept(session, row, found.manifest, ctx.clock.now(), found.look)
        log.info("data set validated", dataset=row.name, state=row.state, errors=row.errors)


def _reject(ctx: Context, dataset_id: str, reason: str) -> None:
    with ctx.db.session() as session:
        row = session.get(Dataset, dataset_id, with_for_update=True)
        if row is not None and row.state == "validating":
            store.keep_problems(session, row, [("", "error", reason)], 1)
            store.reject(row, reason, ctx.clock.now())


def revalidate(ctx: Context) -> None:
    """Send again what a lost message or a dead worker has left validating."""
    with ctx.db.reading() as session:
        waiting = [row.id for row in store.listing(session, "validating")]
    for dataset_id in waiting:
        ctx.jobs.enqueue("datasets.validate", dataset_id)


TASKS: dict[str, Task] = {"datasets.validate": validate}
SWEEPS: dict[str, tuple[float, Sweep]] = {"datasets.revalidate": (30.0, revalidate)}
