"""Tables of the dealer and every query on them. All functions work inside the caller's transaction.

Rows that change state are locked first (``FOR UPDATE``; on SQLite the transaction itself holds the
write lock), so of two takers of one deal the second sees it taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import (
    BigInteger,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    Text,
    func,
    or_,
    select,
)
from sqlalchemy.orm import Mapped, Session, mapped_column

from primia.chassis.db import UtcDateTime
from primia.chassis.leases import LeaseMixin
from primia.errors import Conflict, Forbidden, NotFound
from primia.mpc.material import Manifest
from primia.prg import fresh_bytes
from services.crypto_provider.material.domain import (
    BEING_MADE,
    OPEN,
    DealState,
    Event,
    Parties,
    Sizes,
    step,
)
from services.crypto_provider.tables import Base

_OPEN = tuple(state.value for state in OPEN)
_BEING_MADE = tuple(state.value for state in BEING_MADE)


class PlanRow(Base):
    """A plan that its owner has registered; ``seed`` is the sealed seed of its weight mask A."""

    __tablename__ = "plans"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    digest: Mapped[str] = mapped_column(String(64))
    document: Mapped[str] = mapped_column(Text)
    stock: Mapped[int]
    batch: Mapped[int]
    seed: Mapped[bytes] = mapped_column(LargeBinary)
    active: Mapped[bool] = mapped_column(default=True)
    created: Mapped[datetime] = mapped_column(UtcDateTime)


class DealRow(LeaseMixin, Base):
    """One deal. ``ahead``: its node keeps it for later. ``bytesP``: of party P's half;
    ``size_bytes``: of the three parts on the disk. ``startP``: where the latest download of party
    P's half began; ``receivedP``: that party has confirmed its half."""

    __tablename__ = "deals"
    __table_args__ = (
        Index("ix_deals_stock", "plan", "batch", "state"),
        Index("ix_deals_node", "node", "state"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    plan: Mapped[str] = mapped_column(ForeignKey("plans.id"))
    owner: Mapped[str] = mapped_column(String(64))
    node: Mapped[str | None] = mapped_column(String(64))
    batch: Mapped[int]
    ahead: Mapped[bool] = mapped_column(default=False)
    state: Mapped[str] = mapped_column(String(16))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    bytes0: Mapped[int] = mapped_column(BigInteger)
    bytes1: Mapped[int] = mapped_column(BigInteger)
    sha_p0: Mapped[str | None] = mapped_column(String(64))
    sha_p1: Mapped[str | None] = mapped_column(String(64))
    sha_common: Mapped[str | None] = mapped_column(String(64))
    start0: Mapped[int | None] = mapped_column(BigInteger)
    start1: Mapped[int | None] = mapped_column(BigInteger)
    received0: Mapped[bool] = mapped_column(default=False)
    received1: Mapped[bool] = mapped_column(default=False)
    reason: Mapped[str] = mapped_column(String(2000), default="")
    created: Mapped[datetime] = mapped_column(UtcDateTime)
    expires: Mapped[datetime | None] = mapped_column(UtcDateTime)

    def parties(self) -> Parties:
        return Parties(owner=self.owner, node=self.node)

    def bytes_of(self, party: int) -> int:
        return self.bytes1 if party else self.bytes0

    def sha_of(self, party: int) -> str | None:
        return self.sha_p1 if party else self.sha_p0

    def start_of(self, party: int) -> int | None:
        return self.start1 if party else self.start0

    def received_by(self, party: int) -> bool:
        return self.received1 if party else self.received0

    def advance(self, event: Event, reason: str = "") -> None:
        """Raises Spent or Conflict where the transition table has no such step."""
        self.state = step(DealState(self.state), event).value
        if reason:
            self.reason = reason[:2000]


def offer_plan(session: Session, row: PlanRow) -> PlanRow:
    """Keep a plan; the same offer again changes nothing but stock and batch."""
    known = session.get(PlanRow, row.id, with_for_update=True)
    if known is None:
        session.add(row)
        session.flush()
        return row
    if known.owner != row.owner:
        raise Forbidden("This plan was registered by another model owner.")
    if known.document != row.document:
        raise Conflict(
            "Another plan is registered under this identifier.",
            hint="Register a changed model under a new identifier: it needs its own mask.",
        )
    known.stock, known.batch, known.active = row.stock, row.batch, True
    return known


def plan(session: Session, plan_id: str, *, lock: bool = False) -> PlanRow:
    row = session.get(PlanRow, plan_id, with_for_update=lock)
    if row is None:
        raise NotFound("No such plan is registered here.")
    return row


def active_plans(session: Session) -> Sequence[PlanRow]:
    return session.scalars(select(PlanRow).where(PlanRow.active)).all()


def stock_counts(session: Session, plan_id: str, batch: int) -> tuple[int, int]:
    """Deals of this plan and batch that are (ready, being made for the stock)."""
    rows = session.execute(
        select(DealRow.state, func.count())
        .where(DealRow.plan == plan_id, DealRow.batch == batch)
        .group_by(DealRow.state)
    )
    counted = {row[0]: row[1] for row in rows}
    return counted.get(DealState.READY.value, 0), counted.get(DealState.MAKING.value, 0)


def open_deals(session: Session, node: str, ahead: bool) -> int:
    """Deals that this node has been promised and has not used up: for images, or ahead of them."""
    states = (DealState.PROMISED.value, DealState.RESERVED.value)
    query = select(func.count()).where(
        DealRow.node == node, DealRow.state.in_(states), DealRow.ahead.is_(ahead)
    )
    return session.scalar(query) or 0


def held_bytes(session: Session) -> int:
    """Bytes of all deals that lie here or are being made."""
    query = select(func.coalesce(func.sum(DealRow.size_bytes), 0)).where(DealRow.state.in_(_OPEN))
    return int(session.scalar(query) or 0)


@dataclass(frozen=True)
class Taker:
    """For whom a deal is; ``ahead``: no image waits for it."""

    node: str
    expires: datetime
    ahead: bool = False


def claim(session: Session, plan_id: str, batch: int, taker: Taker) -> DealRow | None:
    """Take a deal for this node from the stock: a ready one, else one that is being made."""
    for state in (DealState.READY, DealState.MAKING):
        row = session.scalars(
            select(DealRow)
            .where(DealRow.plan == plan_id, DealRow.batch == batch, DealRow.state == state.value)
            .order_by(DealRow.created, DealRow.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        ).first()
        if row is not None:
            row.advance(Event.CLAIM)
            row.node, row.expires, row.ahead = taker.node, taker.expires, taker.ahead
            return row
    return None


def new_deal(
    session: Session,
    plan_row: PlanRow,
    batch: int,
    sizes: Sizes,
    now: datetime,
    taker: Taker | None = None,
) -> DealRow:
    """A deal to be made: for the stock, or promised to a node."""
    row = DealRow(
        id=fresh_bytes(16).hex(),
        plan=plan_row.id,
        owner=plan_row.owner,
        node=taker.node if taker else None,
        batch=batch,
        ahead=taker.ahead if taker else False,
        state=(DealState.PROMISED if taker else DealState.MAKING).value,
        size_bytes=sizes.disk,
        bytes0=sizes.half0,
        bytes1=sizes.half1,
        created=now,
        expires=taker.expires if taker else None,
    )
    session.add(row)
    session.flush()
    return row


def deal(session: Session, deal_id: str, *, lock: bool = False) -> DealRow:
    row = session.get(DealRow, deal_id, with_for_update=lock)
    if row is None:
        raise NotFound("There is no such deal.")
    return row


def record_dealt(row: DealRow, manifest: Manifest) -> None:
    row.advance(Event.DEALT)
    row.sha_p0, row.sha_p1, row.sha_common = manifest.p0, manifest.p1, manifest.common


def record_start(row: DealRow, party: int, start: int) -> None:
    if party:
        row.start1 = start
    else:
        row.start0 = start


def record_received(row: DealRow, party: int) -> None:
    """Both parties have their halves: the deal is spent."""
    if party:
        row.received1 = True
    else:
        row.received0 = True
    if row.received0 and row.received1:
        row.advance(Event.FINISH, "both parties have received their halves")


def being_made(session: Session, limit: int = 200) -> Sequence[str]:
    """What somebody waits for comes first."""
    query = select(DealRow.id).where(DealRow.state.in_(_BEING_MADE))
    order = DealRow.state != DealState.PROMISED.value, DealRow.ahead, DealRow.created
    return session.scalars(query.order_by(*order).limit(limit)).all()


def more_urgent(session: Session, than: DealRow, now: datetime) -> str | None:
    """A deal that nobody makes yet and that goes before this one: images that wait go first, then
    what nodes keep ahead, then the stock."""
    if than.state == DealState.PROMISED.value and not than.ahead:
        return None
    query = select(DealRow.id).where(
        DealRow.state == DealState.PROMISED.value,
        or_(DealRow.lease_until.is_(None), DealRow.lease_until < now),
    )
    if than.state == DealState.PROMISED.value:
        query = query.where(DealRow.ahead.is_(False))
    return session.scalars(query.order_by(DealRow.ahead, DealRow.created).limit(1)).first()


def expired(session: Session, now: datetime, limit: int = 200) -> Sequence[DealRow]:
    return session.scalars(
        select(DealRow)
        .where(DealRow.state.in_(_OPEN), DealRow.expires < now)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()


def of_inactive_plans(session: Session, limit: int = 200) -> Sequence[DealRow]:
    """Stock that nobody can ask for any more."""
    states = (DealState.READY.value, DealState.MAKING.value)
    return session.scalars(
        select(DealRow)
        .join(PlanRow, PlanRow.id == DealRow.plan)
        .where(DealRow.state.in_(states), PlanRow.active.is_(False))
        .limit(limit)
        .with_for_update(skip_locked=True, of=DealRow)
    ).all()


def open_among(session: Session, deal_ids: Sequence[str]) -> set[str]:
    """Those of these deals whose files are still needed."""
    query = select(DealRow.id).where(DealRow.id.in_(deal_ids), DealRow.state.in_(_OPEN))
    return set(session.scalars(query))
