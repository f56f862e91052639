"""Deals kept ahead of any image: their rows, and who takes them.

A row a deal: ``fetching`` until one is reserved, ``dealing`` while it is made, ``fetching`` while
its half comes, ``waiting`` for the model owner's, ``kept``, then ``taken`` in the transaction that
hands it to an inference, or ``dropped``. What is about to expire is burned and replaced.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import Index, LargeBinary, Select, String, delete, func, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from primia.chassis.context import Context
from primia.chassis.db import UtcDateTime
from primia.chassis.leases import LeaseMixin
from primia.chassis.telemetry import get_logger
from primia.errors import PrimiaError
from primia.messages.inference import KeptDeals, KeptList, ServedModel
from primia.mpc.material import Half
from primia.mpc.plan import Plan
from services.data_node.inference.served import dealer, owner
from services.data_node.tables import Base

log = get_logger(__name__)
FOLDER = "prefetched"
FETCHING, DEALING, WAITING = "fetching", "dealing", "waiting"
KEPT, TAKEN, DROPPED = "kept", "taken", "dropped"
UNDER_WAY = (FETCHING, DEALING, WAITING)
OPEN = (*UNDER_WAY, KEPT)
# An inference that takes a deal needs this long before it has used it.
_MARGIN = timedelta(minutes=5)
# A row that has ended tells for so long what became of its deal.
_FORGOTTEN = timedelta(hours=1)


class PrefetchedDeal(LeaseMixin, Base):
    """``served``: the plan's public card as JSON text; ``again``: when to ask for a deal once
    more; ``session``: at the model owner, which keeps its half too; ``share``: this node's share
    of the result, sealed, once the message that it belongs to lies there."""

    __tablename__ = "prefetched_deals"
    __table_args__ = (Index("ix_prefetched_deals_plan", "plan", "batch", "state"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    plan: Mapped[str] = mapped_column(String(32))
    batch: Mapped[int]
    served: Mapped[str]
    deal: Mapped[str | None] = mapped_column(String(32))
    state: Mapped[str] = mapped_column(String(8))
    expires: Mapped[datetime | None] = mapped_column(UtcDateTime)
    again: Mapped[datetime | None] = mapped_column(UtcDateTime)
    session: Mapped[str | None] = mapped_column(String(32))
    share: Mapped[bytes | None] = mapped_column(LargeBinary)


@dataclass(frozen=True, repr=False)
class Kept:
    """A taken deal and this node's half, which is still to be loaded. ``session``: asked for ahead,
    where the model owner keeps its half as well; ``share``: what ``Client.restore`` takes, where
    the offline message lies there too."""

    deal: str
    half: Half
    session: str | None
    share: bytes | None


def share_purpose(row_id: str) -> str:
    return f"share of prefetched deal {row_id}"


def half_path(ctx: Context, row_id: str) -> Path:
    return ctx.files.path(FOLDER, row_id)


def take(ctx: Context, plan_id: str, plan: Plan, batch: int) -> Kept | None:
    """A kept deal, or None; marked as taken before it is read."""
    with ctx.db.session() as session:
        row = session.scalars(
            _takeable(ctx, plan_id, batch).with_for_update(skip_locked=True)
        ).first()
        if row is None:
            return None
        row.state = TAKEN
        deal, sealed = row.deal or "", row.share
        row.share = None
    path = half_path(ctx, row.id)
    try:
        half = Half.map(path, plan, batch, 1, bytes.fromhex(deal), whole=False)
        share = ctx.secrets.open(sealed, share_purpose(row.id)) if sealed else None
    except (OSError, PrimiaError) as error:
        log.warning("a prefetched half is unusable", deal=deal, error=type(error).__name__)
        burn(ctx, deal, row.session)
        return None
    finally:
        path.unlink(missing_ok=True)
    return Kept(deal, half, row.session, share)


def _takeable(ctx: Context, plan_id: str, batch: int) -> Select[PrefetchedDeal]:
    """The kept deal that expires first, but not too soon for an inference; if there is one, such
    that the model owner keeps its half as well."""
    return (
        select(PrefetchedDeal)
        .where(
            PrefetchedDeal.plan == plan_id,
            PrefetchedDeal.batch == batch,
            PrefetchedDeal.state == KEPT,
            PrefetchedDeal.expires > ctx.clock.now() + _MARGIN,
        )
        .order_by(PrefetchedDeal.share.is_(None), PrefetchedDeal.expires)
        .limit(1)
    )


def held(ctx: Context, plan_id: str, batch: int) -> tuple[bool, bool]:
    """Whether ``take`` would find a deal for this plan and batch; and whether the model owner has
    its half of it, and the offline message, too."""
    with ctx.db.reading() as session:
        row = session.scalars(_takeable(ctx, plan_id, batch)).first()
    return row is not None, row is not None and row.share is not None


def open_rows(session: Session, plan: str, batch: int) -> Sequence[PrefetchedDeal]:
    query = select(PrefetchedDeal).where(
        PrefetchedDeal.plan == plan,
        PrefetchedDeal.batch == batch,
        PrefetchedDeal.state.in_(OPEN),
    )
    return session.scalars(query.with_for_update()).all()


def due(session: Session, now: datetime, limit: int = 100) -> Sequence[str]:
    """Deals under way that are to be looked at now."""
    wanted = PrefetchedDeal.again.is_(None) | (PrefetchedDeal.again <= now)
    query = select(PrefetchedDeal.id).where(PrefetchedDeal.state.in_(UNDER_WAY), wanted)
    return session.scalars(query.limit(limit)).all()


def drop_unserved(ctx: Context, plans: Collection[str]) -> None:
    """Burn what is of plans that are served no more."""
    with ctx.db.reading() as session:
        wanted = PrefetchedDeal.state.in_(OPEN), PrefetchedDeal.plan.not_in(plans)
        old = session.scalars(select(PrefetchedDeal.id).where(*wanted)).all()
    for row_id in old:
        drop(ctx, row_id)


def drop_old(ctx: Context) -> None:
    """Burn what is about to expire, and forget what has ended long ago."""
    now = ctx.clock.now()
    with ctx.db.reading() as session:
        old = session.scalars(
            select(PrefetchedDeal.id).where(
                PrefetchedDeal.state.in_(OPEN), PrefetchedDeal.expires <= now + _MARGIN
            )
        ).all()
    for row_id in old:
        drop(ctx, row_id)
    with ctx.db.session() as session:
        session.execute(
            delete(PrefetchedDeal).where(
                PrefetchedDeal.state.in_((TAKEN, DROPPED)),
                PrefetchedDeal.expires < now - _FORGOTTEN,
            )
        )


def drop(ctx: Context, row_id: str) -> None:
    """Burn a deal that nobody has taken. Of a row that never had one nothing is left."""
    with ctx.db.session() as session:
        row = session.get(PrefetchedDeal, row_id, with_for_update=True)
        if row is None or row.state not in OPEN:
            return
        deal, asked = row.deal, row.session
        row.share = None
        row.state, row.expires = DROPPED, row.expires or ctx.clock.now()
        if deal is None:
            session.delete(row)
    half_path(ctx, row_id).unlink(missing_ok=True)
    if deal is not None:
        burn(ctx, deal, asked)


def burn(ctx: Context, deal_id: str, session_id: str | None) -> None:
    """Tell both; what cannot be reached lets it expire."""
    paths = [(dealer(ctx), f"/deals/{deal_id}")]
    if session_id is not None:
        paths.append((owner(ctx), f"/inference/sessions/{session_id}"))
    for peer, path in paths:
        try:
            peer.delete(path)
        except PrimiaError as error:
            log.warning("not burned", path=path, detail=error.detail)


def tidy(ctx: Context, seconds: float) -> None:
    """Remove old halves of rows that neither keep nor fetch one."""
    with ctx.db.reading() as session:
        keep = set(session.scalars(select(PrefetchedDeal.id).where(PrefetchedDeal.state.in_(OPEN))))
    ctx.files.remove_stale(FOLDER, seconds, keep=keep)


def listing(ctx: Context) -> KeptList:
    """What an image finds, plan by plan."""
    found: dict[tuple[str, int], list[PrefetchedDeal]] = {}
    with ctx.db.reading() as session:
        query = select(PrefetchedDeal).where(PrefetchedDeal.state.in_(OPEN))
        for row in session.scalars(query.order_by(PrefetchedDeal.plan, PrefetchedDeal.batch)):
            found.setdefault((row.plan, row.batch), []).append(row)
    return KeptList(kept=tuple(_listed(rows) for rows in found.values()))


def _listed(rows: Sequence[PrefetchedDeal]) -> KeptDeals:
    model = ServedModel.model_validate_json(rows[0].served)
    kept = [row for row in rows if row.state == KEPT]
    ready = sum(row.share is not None for row in kept)
    return KeptDeals(
        model=model.card.name,
        version=model.card.version,
        result=model.plans[0].result,
        accuracy=model.plans[0].accuracy,
        batch=rows[0].batch,
        ready=ready,
        own=len(kept) - ready,
        coming=len(rows) - len(kept),
    )


def counts(ctx: Context) -> dict[str, int]:
    """State -> number of rows."""
    with ctx.db.reading() as session:
        rows = session.execute(
            select(PrefetchedDeal.state, func.count()).group_by(PrefetchedDeal.state)
        )
        return {row[0]: row[1] for row in rows}
