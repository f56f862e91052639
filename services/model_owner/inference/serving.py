"""What it takes to serve a model version: compile it, have it dealt for, publish the opening."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import cast

from sqlalchemy.orm import Session

from primia.chassis.context import Context
from primia.chassis.identity import decode_key
from primia.chassis.leases import lease
from primia.chassis.peers import PeerClient
from primia.chassis.telemetry import get_logger
from primia.errors import MalformedMessage, PeerUnavailable, PrimiaError, Unavailable
from primia.messages.inference import Accuracy, Agreement, MaskSeed, PlanOffer, Result
from primia.mpc.compiled import CompiledModel
from primia.mpc.opening import write_opening
from primia.prg import SEED_BYTES, Seed, fresh_bytes
from services.model_owner.inference import models, store
from services.model_owner.inference.domain import ServingEvent, ServingState
from services.model_owner.registry import store as registry
from services.model_owner.registry.store import ModelVersion

log = get_logger(__name__)
_MAX_ATTEMPTS = 5
# Compiling a ResNet takes seconds; the lease is renewed meanwhile.
_LEASE_SECONDS = 60


def dealer(ctx: Context) -> PeerClient:
    client: PeerClient = ctx.peers.client(ctx.settings.dealer_name, ctx.settings.dealer_url)
    return client


def ask(
    ctx: Context,
    session: Session,
    version: ModelVersion,
    kind: tuple[Result, Accuracy],
    stock: int,
    batch: int,
) -> store.CompiledPlanRow:
    """The row of this version and kind; a new one where there is none that lives."""
    row = store.serving_of(session, version.model, version.version, *kind, lock=True)
    ended = (ServingState.FAILED.value, ServingState.WITHDRAWN.value)
    if row is not None and row.state in ended:
        session.delete(row)
        session.flush()
        row = None
    if row is None:
        row = store.CompiledPlanRow(
            id=fresh_bytes(16).hex(),
            model=version.model,
            version=version.version,
            result=kind[0],
            accuracy=kind[1],
            state=ServingState.QUEUED.value,
            created=ctx.clock.now(),
        )
        session.add(row)
    row.stock, row.batch = stock, batch
    session.flush()
    ctx.jobs.enqueue_after(session, "inference.compile", row.id)
    return row


def compile_plan(ctx: Context, plan_id: str) -> None:
    """Bring a row to ``serving`` or ``failed``; of one that is served, renew stock and batch."""
    with lease(ctx.db, ctx.clock, store.CompiledPlanRow, plan_id, _LEASE_SECONDS) as held:
        if held is None:
            return
        try:
            with ctx.db.session() as session:
                row = store.serving(session, plan_id, lock=True)
                if row.state == ServingState.QUEUED.value:
                    row.advance(ServingEvent.START)
            if row.state == ServingState.SERVING.value:
                _offer(ctx, row)
            elif row.state == ServingState.COMPILING.value:
                if held.attempt > _MAX_ATTEMPTS:
                    raise Unavailable("The worker was interrupted too often while compiling it.")
                _publish(ctx, row)
        except PeerUnavailable as error:
            _note(ctx, plan_id, error)  # the sweep tries again
        except PrimiaError as error:
            _refuse(ctx, plan_id, error)


@dataclass(frozen=True)
class _Opening:
    size: int
    sha256: str


def _publish(ctx: Context, row: store.CompiledPlanRow) -> None:
    compiled, agreement = _compiled(ctx, row)
    row.document = compiled.plan.to_json().decode()
    row.digest = compiled.plan.digest().hex()
    _offer(ctx, row)
    answer = dealer(ctx).get(f"/plans/{row.id}/mask", MaskSeed)
    opening = _write_opening(ctx, row.id, compiled, answer)
    ctx.files.write(models.weights_path(ctx.files, row.id), compiled.to_bytes())
    with ctx.db.session() as session:
        current = store.serving(session, row.id, lock=True)
        if current.state != ServingState.COMPILING.value:  # withdrawn meanwhile
            return
        current.advance(ServingEvent.PUBLISH)
        current.agreement = agreement.model_dump() if agreement else None
        current.document, current.digest = row.document, row.digest
        current.opening_bytes, current.opening_sha256 = opening.size, opening.sha256
    log.info("model served", model=row.model, version=row.version, result=row.result)


def _compiled(ctx: Context, row: store.CompiledPlanRow) -> tuple[CompiledModel, Agreement | None]:
    # torch stays out of the processes that only import the routes.
    from services.model_owner.inference.compiling import compile_version

    with ctx.db.reading() as session:
        version = registry.ready_version(session, row.model, row.version)
        spec = registry.spec_at(registry.find_model(session, row.model), version)
    kind = cast(Result, row.result), cast(Accuracy, row.accuracy)
    return compile_version(ctx.files, version.id, spec, kind, ctx.settings.threads)


def _offer(ctx: Context, row: store.CompiledPlanRow) -> None:
    offer = PlanOffer(
        plan=row.document or "", digest=row.digest or "", stock=row.stock, batch=row.batch
    )
    dealer(ctx).put(f"/plans/{row.id}", offer)


def _write_opening(
    ctx: Context, plan_id: str, compiled: CompiledModel, answer: MaskSeed
) -> _Opening:
    raw = decode_key(answer.seed)
    if len(raw) != SEED_BYTES:
        raise MalformedMessage("The crypto provider sent a seed of another length.")
    data = write_opening(compiled.plan, compiled.weights, Seed(raw))
    ctx.files.write(models.opening_path(ctx.files, plan_id), data)
    return _Opening(len(data), hashlib.sha256(data).hexdigest())


def _note(ctx: Context, plan_id: str, error: PrimiaError) -> None:
    with ctx.db.session() as session:
        row = store.serving(session, plan_id, lock=True)
        row.reason = f"{error.detail} It is tried again."[:2000]
        row.attempts = 0  # the other side's absence is not this row's fault


def _refuse(ctx: Context, plan_id: str, error: PrimiaError) -> None:
    with ctx.db.session() as session:
        row = store.serving(session, plan_id, lock=True)
        if row.state == ServingState.COMPILING.value:
            row.advance(ServingEvent.REFUSE, str(error))
        else:
            row.reason = str(error)[:2000]
    log.warning("model not served", plan=plan_id, reason=error.detail)


def withdraw(ctx: Context, plan_id: str) -> None:
    """Tell the dealer, and forget the compiled files."""
    try:
        dealer(ctx).delete(f"/plans/{plan_id}")
    except PrimiaError as error:
        log.warning("the dealer keeps a withdrawn plan", plan=plan_id, reason=error.detail)
    models.remove(ctx.files, plan_id)
