"""Tables of party 0's side and every query on them, inside the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Index, LargeBinary, String, Text, UniqueConstraint, func, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from primia.chassis.db import JsonDocument, UtcDateTime
from primia.chassis.leases import LeaseMixin
from primia.errors import NotFound
from services.model_owner.inference.domain import (
    AHEAD_SESSIONS,
    LIVE_SESSIONS,
    ServingEvent,
    ServingState,
    SessionEvent,
    SessionState,
    step_serving,
    step_session,
)
from services.model_owner.tables import Base

_LIVE = tuple(state.value for state in LIVE_SESSIONS)
_AHEAD = tuple(state.value for state in AHEAD_SESSIONS)


class CompiledPlanRow(LeaseMixin, Base):
    """A model version compiled for one result and accuracy. ``id`` names it at the crypto provider.

    ``document``: the plan's canonical JSON. Files in the state directory, by id: the compiled
    weights and the opening E = W - A.
    """

    __tablename__ = "compiled_plans"
    __table_args__ = (UniqueConstraint("model", "version", "result", "accuracy"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    model: Mapped[str] = mapped_column(String(64))
    version: Mapped[int]
    result: Mapped[str] = mapped_column(String(8))
    accuracy: Mapped[str] = mapped_column(String(12))
    agreement: Mapped[dict[str, Any] | None] = mapped_column(JsonDocument)
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(String(2000), default="")
    stock: Mapped[int]
    batch: Mapped[int]
    digest: Mapped[str | None] = mapped_column(String(64))
    document: Mapped[str | None] = mapped_column(Text)
    opening_bytes: Mapped[int | None] = mapped_column(BigInteger)
    opening_sha256: Mapped[str | None] = mapped_column(String(64))
    created: Mapped[datetime] = mapped_column(UtcDateTime)

    def advance(self, event: ServingEvent, reason: str = "") -> None:
        self.state = step_serving(ServingState(self.state), event).value
        self.reason = reason[:2000]


class SessionRow(LeaseMixin, Base):
    """One inference of one node. ``host``: URL of the worker that holds it; ``token``: the sealed
    secret that the worker asks for; ``largest_body``: bytes of the largest step;
    ``alive_until``: renewed by that worker while it lives. Of one that was asked for ahead:
    ``expires``; ``size_bytes`` that it may take on the disk; ``stored``: its half lies there whole;
    ``offline``: SHA-256 of the message that came ahead."""

    __tablename__ = "sessions"
    __table_args__ = (Index("ix_sessions_state", "state", "node"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    plan: Mapped[str] = mapped_column(String(32))
    node: Mapped[str] = mapped_column(String(64))
    deal: Mapped[str] = mapped_column(String(32), unique=True)
    batch: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(String(2000), default="")
    host: Mapped[str | None] = mapped_column(String(255))
    token: Mapped[bytes | None] = mapped_column(LargeBinary)
    largest_body: Mapped[int] = mapped_column(BigInteger)
    created: Mapped[datetime] = mapped_column(UtcDateTime)
    alive_until: Mapped[datetime] = mapped_column(UtcDateTime)
    expires: Mapped[datetime | None] = mapped_column(UtcDateTime)
    size_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    stored: Mapped[bool] = mapped_column(default=False)
    offline: Mapped[str | None] = mapped_column(String(64))

    def advance(self, event: SessionEvent, reason: str = "") -> None:
        self.state = step_session(SessionState(self.state), event).value
        self.reason = reason[:2000]


Rows = Sequence[CompiledPlanRow]


def serving(session: Session, plan_id: str, *, lock: bool = False) -> CompiledPlanRow:
    row = session.get(CompiledPlanRow, plan_id, with_for_update=lock)
    if row is None:
        raise NotFound("No such plan is served here.")
    return row


def serving_of(
    session: Session, model: str, version: int, result: str, accuracy: str, *, lock: bool = False
) -> CompiledPlanRow | None:
    query = select(CompiledPlanRow).where(
        CompiledPlanRow.model == model,
        CompiledPlanRow.version == version,
        CompiledPlanRow.result == result,
        CompiledPlanRow.accuracy == accuracy,
    )
    return session.scalars(query.with_for_update() if lock else query).first()


def servings(session: Session, model: str, version: int, *, lock: bool = False) -> Rows:
    query = (
        select(CompiledPlanRow)
        .where(CompiledPlanRow.model == model, CompiledPlanRow.version == version)
        .order_by(CompiledPlanRow.result, CompiledPlanRow.accuracy.desc())
    )
    return session.scalars(query.with_for_update() if lock else query).all()


def served(session: Session, limit: int) -> Rows:
    """What data nodes may use, newest versions first."""
    return session.scalars(
        select(CompiledPlanRow)
        .where(CompiledPlanRow.state == ServingState.SERVING.value)
        .order_by(
            CompiledPlanRow.model,
            CompiledPlanRow.version.desc(),
            CompiledPlanRow.result,
            CompiledPlanRow.accuracy.desc(),
        )
        .limit(limit)
    ).all()


def to_compile(session: Session, limit: int = 100) -> Sequence[str]:
    states = (ServingState.QUEUED.value, ServingState.COMPILING.value)
    query = select(CompiledPlanRow.id).where(CompiledPlanRow.state.in_(states))
    return session.scalars(query.limit(limit)).all()


def session_row(session: Session, session_id: str, *, lock: bool = False) -> SessionRow:
    row = session.get(SessionRow, session_id, with_for_update=lock)
    if row is None:
        raise NotFound("There is no such session.")
    return row


def session_of(session: Session, session_id: str, node: str) -> SessionRow:
    """A node's own session: that another's exists is not told."""
    row = session.get(SessionRow, session_id)
    if row is None or row.node != node:
        raise NotFound("There is no such session.")
    return row


def session_of_deal(session: Session, deal: str) -> SessionRow | None:
    """Locked."""
    query = select(SessionRow).where(SessionRow.deal == deal)
    return session.scalars(query.with_for_update()).first()


def kept_ahead(session: Session, node: str) -> tuple[int, int]:
    """Sessions that are kept ahead of images for this node, and bytes of those of all nodes."""
    ahead = SessionRow.state.in_(_AHEAD)
    own = session.scalar(select(func.count()).where(ahead, SessionRow.node == node))
    size = session.scalar(select(func.coalesce(func.sum(SessionRow.size_bytes), 0)).where(ahead))
    return own or 0, int(size or 0)


def to_keep(session: Session, limit: int = 100) -> Sequence[str]:
    query = select(SessionRow.id).where(SessionRow.state == SessionState.KEEPING.value)
    return session.scalars(query.order_by(SessionRow.created).limit(limit)).all()


def useless_ahead(session: Session, now: datetime, limit: int = 100) -> Sequence[SessionRow]:
    """Sessions kept ahead that have expired, or whose plan is served no more."""
    served = select(CompiledPlanRow.id).where(CompiledPlanRow.state == ServingState.SERVING.value)
    old = (SessionRow.expires < now) | SessionRow.plan.not_in(served)
    return session.scalars(
        select(SessionRow)
        .where(SessionRow.state.in_(_AHEAD), old)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()


def with_files(session: Session) -> set[str]:
    """Sessions whose files are kept ahead, or not yet opened."""
    wanted = (*_AHEAD, SessionState.PREPARING.value)
    return set(session.scalars(select(SessionRow.id).where(SessionRow.state.in_(wanted))))


def live_sessions(session: Session, node: str | None = None) -> int:
    query = select(func.count()).where(SessionRow.state.in_(_LIVE))
    if node is not None:
        query = query.where(SessionRow.node == node)
    return session.scalar(query) or 0


def preparing(session: Session, limit: int = 100) -> Sequence[str]:
    query = select(SessionRow.id).where(SessionRow.state == SessionState.PREPARING.value)
    return session.scalars(query.limit(limit)).all()


def lost_sessions(session: Session, now: datetime, limit: int = 100) -> Sequence[SessionRow]:
    """Live sessions whose worker has not renewed them in time."""
    return session.scalars(
        select(SessionRow)
        .where(SessionRow.state.in_(_LIVE), SessionRow.alive_until < now)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()


def renew(session: Session, session_ids: Sequence[str], until: datetime) -> None:
    rows = session.scalars(
        select(SessionRow).where(
            SessionRow.id.in_(session_ids), SessionRow.state == SessionState.READY.value
        )
    )
    for row in rows:
        row.alive_until = until
