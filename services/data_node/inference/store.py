"""Tables of encrypted inferences and every query on them, inside the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Index, LargeBinary, String, delete, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from primia.chassis.db import JsonDocument, UtcDateTime
from primia.chassis.leases import LeaseMixin
from primia.errors import NotFound
from primia.messages.common import ModelCard
from primia.messages.inference import (
    Cost,
    FixedProtocol,
    InferenceStatus,
    ServedModel,
    ServedPlan,
)
from services.data_node.inference.domain import ENDED, State, move
from services.data_node.tables import Base

_OPEN = (State.QUEUED.value, State.RUNNING.value)
_ENDED = tuple(state.value for state in ENDED)


class Inference(LeaseMixin, Base):
    """One request. ``pixels``: the sealed images as the model takes them, until it has ended;
    ``outcome``: the sealed predictions. ``deal``, ``session``: of the attempt that is running.
    ``served``: the model's public card and plan, as they were when it was asked for, the
    protocol, and why it was chosen."""

    __tablename__ = "inferences"
    __table_args__ = (Index("ix_inferences_state", "state", "created"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    user: Mapped[str] = mapped_column(String(64))
    model: Mapped[str] = mapped_column(String(64))
    version: Mapped[int]
    result: Mapped[str] = mapped_column(String(8))
    images: Mapped[list[Any]] = mapped_column(JsonDocument)
    served: Mapped[dict[str, Any]] = mapped_column(JsonDocument)
    state: Mapped[str] = mapped_column(String(16))
    phase: Mapped[str] = mapped_column(String(32), default="")
    step: Mapped[int] = mapped_column(default=0)
    steps: Mapped[int] = mapped_column(default=0)
    tries: Mapped[int] = mapped_column(default=0)
    reason: Mapped[str] = mapped_column(String(2000), default="")
    cost: Mapped[dict[str, Any]] = mapped_column(JsonDocument, default=dict)
    deal: Mapped[str | None] = mapped_column(String(32))
    session: Mapped[str | None] = mapped_column(String(32))
    pixels: Mapped[bytes | None] = mapped_column(LargeBinary)
    outcome: Mapped[bytes | None] = mapped_column(LargeBinary)
    created: Mapped[datetime] = mapped_column(UtcDateTime)
    finished: Mapped[datetime | None] = mapped_column(UtcDateTime)

    def plan(self) -> ServedPlan:
        return self.model_served().plans[0]

    @property
    def protocol(self) -> FixedProtocol:
        return "securenn" if self.served.get("protocol") == "securenn" else "fss"

    def model_served(self) -> ServedModel:
        return ServedModel.model_validate_json(self.served["model"])

    def status(self) -> InferenceStatus:
        return InferenceStatus.model_validate(
            {
                "id": self.id,
                "model": self.model,
                "version": self.version,
                "result": self.result,
                "protocol": self.protocol,
                "accuracy": self.plan().accuracy,
                "agreement": self.plan().agreement,
                "chosen": self.served.get("chosen", ""),
                "images": tuple(self.images),
                "state": self.state,
                "phase": self.phase,
                "step": self.step,
                "steps": self.steps,
                "attempts": self.tries,
                "cost": Cost.model_validate(self.cost),
                "reason": self.reason,
                "created": self.created,
                "finished": self.finished,
            }
        )


class InferenceEvent(Base):
    """``data``: the inference's status at that moment, as JSON text."""

    __tablename__ = "inference_events"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    inference: Mapped[str] = mapped_column(String(32), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    data: Mapped[dict[str, Any]] = mapped_column(JsonDocument)
    created: Mapped[datetime] = mapped_column(UtcDateTime)


def add(session: Session, row: Inference) -> None:
    session.add(row)
    session.flush()
    note(session, row, "state", row.created)


def find(session: Session, inference_id: str, *, lock: bool = False) -> Inference:
    row = session.get(Inference, inference_id, with_for_update=lock)
    if row is None:
        raise NotFound("There is no such inference.", hint="GET /inference lists them.")
    return row


def newest(session: Session, limit: int) -> Sequence[Inference]:
    query = select(Inference).order_by(Inference.created.desc(), Inference.id).limit(limit)
    return session.scalars(query).all()


def streamed_before(session: Session, card: ModelCard, plan: ServedPlan) -> bool:
    """Whether the latest inference of this model version by SecureNN was of this very plan."""
    query = select(Inference).where(
        Inference.model == card.name,
        Inference.version == card.version,
        Inference.result == plan.result,
        Inference.state == State.DONE.value,
        Inference.served["protocol"].as_string() == "securenn",
    )
    row = session.scalars(query.order_by(Inference.created.desc()).limit(1)).first()
    return row is not None and row.plan().plan == plan.plan


def unfinished(session: Session, now: datetime, limit: int = 100) -> Sequence[str]:
    """Inferences that nobody works on at present."""
    free = Inference.lease_until.is_(None) | (Inference.lease_until < now)
    query = select(Inference.id).where(Inference.state.in_(_OPEN), free)
    return session.scalars(query.order_by(Inference.created).limit(limit)).all()


def unburned(session: Session, now: datetime, limit: int = 100) -> Sequence[str]:
    """Ended inferences whose deal or session could not be burned yet."""
    free = Inference.lease_until.is_(None) | (Inference.lease_until < now)
    opened = Inference.deal.is_not(None) | Inference.session.is_not(None)
    query = select(Inference.id).where(Inference.state.in_(_ENDED), opened, free)
    return session.scalars(query.limit(limit)).all()


def note(session: Session, row: Inference, kind: str, now: datetime) -> None:
    """Keep an event with the row's present status."""
    data = row.status().model_dump(mode="json")
    session.add(InferenceEvent(inference=row.id, kind=kind, data=data, created=now))


def end(session: Session, row: Inference, state: State, now: datetime, reason: str = "") -> None:
    """Done, failed or cancelled: the images go. What is still open stays named until it has been
    burned; when it is done, nothing is open."""
    row.state = move(State(row.state), state).value
    row.reason, row.finished = reason[:2000], now
    row.pixels = None
    if state is State.DONE:
        row.deal = row.session = None
    note(session, row, "state", now)


def cancel(session: Session, row: Inference, now: datetime) -> None:
    """Ended by its user."""
    end(session, row, State.CANCELLED, now, "cancelled by a user")


def is_ended(row: Inference) -> bool:
    return State(row.state) in ENDED


def events_after(session: Session, inference_id: str, last: int) -> Sequence[InferenceEvent]:
    query = select(InferenceEvent).where(
        InferenceEvent.inference == inference_id, InferenceEvent.id > last
    )
    return session.scalars(query.order_by(InferenceEvent.id).limit(500)).all()


def remove(session: Session, row: Inference) -> None:
    session.execute(delete(InferenceEvent).where(InferenceEvent.inference == row.id))
    session.delete(row)
