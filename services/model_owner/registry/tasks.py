"""Making versions ready: first weights from the seed, or uploaded weights checked."""

from __future__ import annotations

from collections.abc import Mapping

from primia.chassis.context import Context
from primia.chassis.jobs import Sweep, Task
from primia.chassis.leases import lease
from primia.chassis.telemetry import get_logger
from primia.errors import InvalidInput, StorageFull
from primia.learning.spec import ModelSpec
from services.model_owner.registry import store, weights
from services.model_owner.registry.store import ModelVersion
from services.model_owner.registry.weights import Written

log = get_logger(__name__)
# A version that took the worker down this often will do so again.
MAX_ATTEMPTS = 5
# No upload of a model takes so long.
_STALE_SECONDS = 6 * 3600


def prepare(ctx: Context, version_id: str) -> None:
    """Write the version's weights file; ready, or failed with the reason. A full disk is waited
    for: the sweep tries again."""
    with lease(ctx.db, ctx.clock, ModelVersion, version_id) as held:
        if held is None:
            return
        with ctx.db.reading() as session:
            row = session.get(ModelVersion, version_id)
            if row is None or row.state != "preparing":
                return
            spec = store.spec_of(store.find_model(session, row.model))
        try:
            if held.attempt > MAX_ATTEMPTS:
                raise InvalidInput("The worker was interrupted too often while preparing it.")
            written = _write(ctx, row, spec)
        except StorageFull as error:
            _wait(ctx, version_id, error)
            return
        except InvalidInput as error:
            _fail(ctx, version_id, str(error))
        else:
            _settle(ctx, version_id, written)
        weights.upload_path(ctx.files, version_id).unlink(missing_ok=True)


def _write(ctx: Context, row: ModelVersion, spec: ModelSpec) -> Written:
    layout = weights.layout_of(ctx.files, spec)
    if row.source == "uploaded":
        vector = weights.read(weights.upload_path(ctx.files, row.id), layout)
    else:
        vector = weights.initial(spec)
    path = weights.weights_path(ctx.files, row.id)
    metadata: dict[str, object] = {"model": row.model, "version": row.version}
    return weights.write(ctx.files, path, vector, layout, metadata)


def _settle(ctx: Context, version_id: str, written: Written) -> None:
    with ctx.db.session() as session:
        row = session.get_one(ModelVersion, version_id, with_for_update=True)
        if row.state == "preparing":
            store.settle(row, digest=written.digest, size=written.bytes, layout=written.size)
    log.info("version ready", model=row.model, version=row.version)


def _wait(ctx: Context, version_id: str, error: StorageFull) -> None:
    with ctx.db.session() as session:
        row = session.get_one(ModelVersion, version_id, with_for_update=True)
        row.reason = f"{error.detail} It is tried again."
        row.attempts = 0  # a full disk is not this row's fault
    log.warning("version waits", model=row.model, version=row.version, reason=error.detail)


def _fail(ctx: Context, version_id: str, reason: str) -> None:
    with ctx.db.session() as session:
        row = session.get_one(ModelVersion, version_id, with_for_update=True)
        if row.state == "preparing":
            store.fail(row, reason)
    log.warning("version failed", model=row.model, version=row.version, reason=reason)


def tidy(ctx: Context) -> None:
    """Remove what uploads left that broke off; those of versions in preparation stay."""
    with ctx.db.reading() as session:
        waiting = store.being_prepared(session)
    keep = {weights.upload_path(ctx.files, version_id).name for version_id in waiting}
    for suffix in (weights.UPLOAD, ".tmp"):
        ctx.files.remove_stale(weights.FOLDER, _STALE_SECONDS, suffix, keep)


def resend(ctx: Context) -> None:
    with ctx.db.reading() as session:
        waiting = store.preparing(session, ctx.clock.now())
    for version_id in waiting:
        ctx.jobs.enqueue("registry.prepare", version_id)


TASKS: Mapping[str, Task] = {"registry.prepare": prepare}
SWEEPS: Mapping[str, tuple[float, Sweep]] = {
    "registry.resend": (15.0, resend),
    "registry.tidy": (600.0, tidy),
}
