"""Deals downloaded ahead of any image (``PRIMIA_PREFETCH``), so that an inference starts at once.

A row a deal: ``fetching`` until its half lies verified on the disk, ``kept``, then ``taken`` in the
transaction that hands it to an inference, or ``dropped``. The dealer holds the other half until
the deal expires: what is about to expire is burned and replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import Index, Select, String, func, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from primia.chassis.context import Context
from primia.chassis.db import UtcDateTime
from primia.chassis.leases import LeaseMixin, lease
from primia.chassis.telemetry import get_logger
from primia.errors import PrimiaError, Unavailable
from primia.messages.inference import Deal, ServedModel, ServedPlan
from primia.mpc.material import Half
from primia.mpc.plan import Plan
from primia.prg import fresh_bytes
from services.data_node.inference import material
from services.data_node.inference.served import dealer, prepared, served_models
from services.data_node.tables import Base

log = get_logger(__name__)
FETCH = "inference.fetch"
FOLDER = "prefetched"
_FETCHING, _KEPT, _TAKEN, _DROPPED = "fetching", "kept", "taken", "dropped"
# An inference that takes a deal needs this long before both halves are handed out.
_MARGIN = timedelta(minutes=5)
_MAX_ATTEMPTS = 3


class PrefetchedDeal(LeaseMixin, Base):
    """``served``: the plan's public card as JSON text."""

    __tablename__ = "prefetched_deals"
    __table_args__ = (Index("ix_prefetched_deals_plan", "plan", "batch", "state"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    plan: Mapped[str] = mapped_column(String(32))
    batch: Mapped[int]
    served: Mapped[str]
    deal: Mapped[str | None] = mapped_column(String(32))
    state: Mapped[str] = mapped_column(String(8))
    expires: Mapped[datetime | None] = mapped_column(UtcDateTime)


@dataclass(frozen=True)
class Kept:
    """The deal's identifier and this node's half of it."""

    deal: str
    half: Half


def half_path(ctx: Context, row_id: str) -> Path:
    return ctx.files.path(FOLDER, row_id)


def take(ctx: Context, plan_id: str, plan: Plan, batch: int) -> Kept | None:
    """A kept deal and this node's half, or None; marked as taken before it is read."""
    with ctx.db.session() as session:
        row = session.scalars(
            _takeable(ctx, plan_id, batch).with_for_update(skip_locked=True)
        ).first()
        if row is None:
            return None
        row.state = _TAKEN
        deal_id = row.deal or ""
    path = half_path(ctx, row.id)
    try:
        return Kept(deal_id, Half.map(path, plan, batch, 1, bytes.fromhex(deal_id)))
    except (OSError, PrimiaError) as error:
        log.warning("a prefetched half is unusable", deal=deal_id, error=type(error).__name__)
        _burn(ctx, deal_id)
        return None
    finally:
        path.unlink(missing_ok=True)


def _takeable(ctx: Context, plan_id: str, batch: int) -> Select[PrefetchedDeal]:
    """The kept deal that expires first, but not too soon for an inference."""
    return (
        select(PrefetchedDeal)
        .where(
            PrefetchedDeal.plan == plan_id,
            PrefetchedDeal.batch == batch,
            PrefetchedDeal.state == _KEPT,
            PrefetchedDeal.expires > ctx.clock.now() + _MARGIN,
        )
        .order_by(PrefetchedDeal.expires)
        .limit(1)
    )


def holds(ctx: Context, plan_id: str, batch: int) -> bool:
    """Whether ``take`` would find a deal for this plan and batch."""
    with ctx.db.reading() as session:
        return session.scalars(_takeable(ctx, plan_id, batch)).first() is not None


def refill(ctx: Context) -> None:
    """Keep ``prefetch`` deals for each plan that is served, of the batch that is in stock."""
    _drop_old(ctx)
    if not ctx.settings.prefetch:
        return
    for model in served_models(ctx).models:
        for plan in model.plans:
            _ask(ctx, ServedModel(card=model.card, plans=(plan,)), plan)


def _ask(ctx: Context, model: ServedModel, plan: ServedPlan) -> None:
    with ctx.db.session() as session:
        rows = _open_rows(session, plan.plan, plan.batch)
        for row in rows:
            if row.state == _FETCHING:
                ctx.jobs.enqueue_after(session, FETCH, row.id)
        for _ in range(ctx.settings.prefetch - len(rows)):
            row = PrefetchedDeal(
                id=fresh_bytes(16).hex(),
                plan=plan.plan,
                batch=plan.batch,
                served=model.model_dump_json(),
                state=_FETCHING,
            )
            session.add(row)
            session.flush()
            ctx.jobs.enqueue_after(session, FETCH, row.id)


def _open_rows(session: Session, plan: str, batch: int) -> Sequence[PrefetchedDeal]:
    query = select(PrefetchedDeal).where(
        PrefetchedDeal.plan == plan,
        PrefetchedDeal.batch == batch,
        PrefetchedDeal.state.in_((_FETCHING, _KEPT)),
    )
    return session.scalars(query.with_for_update()).all()


def fetch(ctx: Context, row_id: str) -> None:
    """Reserve a deal and download this node's half of it. What breaks is burned and dropped."""
    with lease(ctx.db, ctx.clock, PrefetchedDeal, row_id) as held:
        if held is None:
            return
        with ctx.db.reading() as session:
            row = session.get(PrefetchedDeal, row_id)
        if row is None or row.state != _FETCHING:
            return
        if row.deal is not None or held.attempt > _MAX_ATTEMPTS:  # an earlier attempt died
            _drop(ctx, row_id)
            return
        try:
            _fetch(ctx, row)
        except PrimiaError as error:
            log.warning("a deal was not prefetched", code=error.code, detail=error.detail)
            _drop(ctx, row_id)


def _fetch(ctx: Context, row: PrefetchedDeal) -> None:
    model = ServedModel.model_validate_json(row.served)
    wanted = model.plans[0]
    plan = prepared(ctx, model, wanted).plan

    def go_on() -> None:
        if ctx.jobs.stopping():
            raise Unavailable("This process is to end.")

    deal = material.reserve(ctx, wanted, row.batch, go_on, patience=0)
    _set(ctx, row.id, _FETCHING, deal)
    deal = material.until_reserved(ctx, deal, go_on)
    material.download(ctx, deal, plan, row.batch, half_path(ctx, row.id))
    material.confirm(ctx, deal)
    _set(ctx, row.id, _KEPT, deal)


def _set(ctx: Context, row_id: str, state: str, deal: Deal) -> None:
    with ctx.db.session() as session:
        row = session.get_one(PrefetchedDeal, row_id, with_for_update=True)
        if row.state == _FETCHING:  # else it was dropped meanwhile, and stays so
            row.state, row.deal, row.expires = state, deal.id, deal.expires


def _drop_old(ctx: Context) -> None:
    with ctx.db.reading() as session:
        old = session.scalars(
            select(PrefetchedDeal.id).where(
                PrefetchedDeal.state == _KEPT,
                PrefetchedDeal.expires <= ctx.clock.now() + _MARGIN,
            )
        ).all()
    for row_id in old:
        _drop(ctx, row_id)


def _drop(ctx: Context, row_id: str) -> None:
    with ctx.db.session() as session:
        row = session.get_one(PrefetchedDeal, row_id, with_for_update=True)
        if row.state not in (_FETCHING, _KEPT):
            return
        row.state = _DROPPED
    half_path(ctx, row_id).unlink(missing_ok=True)
    if row.deal is not None:
        _burn(ctx, row.deal)


def _burn(ctx: Context, deal_id: str) -> None:
    try:
        dealer(ctx).delete(f"/deals/{deal_id}")
    except PrimiaError as error:
        log.warning("a deal was not burned", deal=deal_id, detail=error.detail)


def tidy(ctx: Context, seconds: float) -> None:
    """Remove old halves of rows that neither keep nor fetch one."""
    with ctx.db.reading() as session:
        wanted = PrefetchedDeal.state.in_((_FETCHING, _KEPT))
        keep = set(session.scalars(select(PrefetchedDeal.id).where(wanted)))
    ctx.files.remove_stale(FOLDER, seconds, keep=keep)


def counts(ctx: Context) -> dict[str, int]:
    """State -> number of rows."""
    with ctx.db.reading() as session:
        rows = session.execute(
            select(PrefetchedDeal.state, func.count()).group_by(PrefetchedDeal.state)
        )
        return {row[0]: row[1] for row in rows}
