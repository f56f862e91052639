"""Tables of training runs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from primia.chassis.db import JsonDocument, UtcDateTime
from primia.chassis.leases import LeaseMixin
from services.model_owner.tables import Base

REASON = 2000


class Run(LeaseMixin, Base):
    """``deadline`` of what the run waits for at present; ``number`` of the present global model,
    which lies in ``weights``, a file below the state directory; ``repeats`` that are left;
    ``statistics`` (learning.statistics) once its measuring round is open.

    ``compared``: versions that are evaluated as well, ``course``: how stopping and selection stand
    (course.Course), both as JSON. ``evaluation``: model -> ModelEvaluation, the sum over the sites
    that show none of their own.
    """

    __tablename__ = "runs"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    state: Mapped[str] = mapped_column(String(12), index=True)
    reason: Mapped[str] = mapped_column(String(REASON), default="")
    request: Mapped[dict[str, Any]] = mapped_column(JsonDocument)
    proposal: Mapped[dict[str, Any]] = mapped_column(JsonDocument)
    model: Mapped[str] = mapped_column(String(64))
    version: Mapped[int]
    final_version: Mapped[int | None]
    secure: Mapped[bool]
    needed: Mapped[int]
    rounds: Mapped[int]
    done: Mapped[int] = mapped_column(default=0)
    repeats: Mapped[int]
    number: Mapped[int] = mapped_column(default=1)
    weights: Mapped[str] = mapped_column(String(255))
    weights_digest: Mapped[str] = mapped_column(String(64))
    weights_bytes: Mapped[int] = mapped_column(BigInteger)
    parameters: Mapped[int] = mapped_column(BigInteger)
    buffers: Mapped[int] = mapped_column(BigInteger)
    compared: Mapped[list[Any]] = mapped_column(JsonDocument, default=list)
    course: Mapped[dict[str, Any]] = mapped_column(JsonDocument, default=dict)
    statistics: Mapped[dict[str, Any] | None] = mapped_column(JsonDocument)
    evaluation: Mapped[dict[str, Any] | None] = mapped_column(JsonDocument)
    deadline: Mapped[datetime | None] = mapped_column(UtcDateTime, index=True)
    cleaned: Mapped[bool] = mapped_column(default=False)
    created: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    created_by: Mapped[str] = mapped_column(String(64))
    ended: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Site(Base):
    """A node in a run. ``engaged`` while the run may ask it for work: one run a node.

    ``sums``: what it adds to sums, and among how many sites at least (Decision.summed, counted).
    ``answers``: item kind -> SHA-256 of the answer given. ``failed``: why it did not evaluate.
    ``stopped``: its own early stopping has ended training there. ``evaluation``: Scores of the
    final model, ``evaluations``: model -> ModelEvaluation.
    """

    __tablename__ = "participants"
    __table_args__ = (
        Index(
            "one_run_a_node",
            "node",
            unique=True,
            sqlite_where=text("engaged"),
            postgresql_where=text("engaged"),
        ),
    )

    run: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    node: Mapped[str] = mapped_column(String(64), primary_key=True)
    public_key: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(12), default="invited")
    reason: Mapped[str] = mapped_column(String(REASON), default="")
    engaged: Mapped[bool] = mapped_column(default=True)
    samples: Mapped[int] = mapped_column(BigInteger, default=0)
    classes: Mapped[list[Any]] = mapped_column(JsonDocument, default=list)
    sums: Mapped[dict[str, Any]] = mapped_column(JsonDocument, default=dict)
    evaluation: Mapped[dict[str, Any] | None] = mapped_column(JsonDocument)
    evaluations: Mapped[dict[str, Any]] = mapped_column(JsonDocument, default=dict)
    stopped: Mapped[bool] = mapped_column(default=False)
    failed: Mapped[str | None] = mapped_column(String(REASON))
    acknowledged: Mapped[bool] = mapped_column(default=False)
    answers: Mapped[dict[str, Any]] = mapped_column(JsonDocument, default=dict)


class Round(LeaseMixin, Base):
    """``summed``: updates in the running sum, and the number in its file's name; ``needed``: sites
    that must remain. A round that measures is secure whatever its run is. ``figures``: what the sum
    of its sites' figures gave, ``training`` and ``received`` (Scores)."""

    __tablename__ = "rounds"
    __table_args__ = (UniqueConstraint("run", "number"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    run: Mapped[str] = mapped_column(ForeignKey("runs.id"), index=True)
    number: Mapped[int]
    purpose: Mapped[str] = mapped_column(String(12), default="train")
    secure: Mapped[bool]
    needed: Mapped[int]
    phase: Mapped[str] = mapped_column(String(12), index=True)
    reason: Mapped[str] = mapped_column(String(REASON), default="")
    summed: Mapped[int] = mapped_column(default=0)
    figures: Mapped[dict[str, Any] | None] = mapped_column(JsonDocument)
    started: Mapped[datetime] = mapped_column(UtcDateTime)
    ended: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Contribution(Base):
    """A node in a round. ``upload``: name of its update's file until that is absorbed.

    ``reveal`` is sealed at rest and erased when the round closes.
    """

    __tablename__ = "contributions"

    round: Mapped[str] = mapped_column(ForeignKey("rounds.id"), primary_key=True)
    node: Mapped[str] = mapped_column(String(64), primary_key=True)
    stage: Mapped[int] = mapped_column(default=0)
    dropped: Mapped[str | None] = mapped_column(String(REASON))
    report: Mapped[dict[str, Any] | None] = mapped_column(JsonDocument)
    upload: Mapped[str | None] = mapped_column(String(255))
    confirmation: Mapped[str | None] = mapped_column(String(128))
    reveal: Mapped[bytes | None] = mapped_column(LargeBinary)
    answers: Mapped[dict[str, Any]] = mapped_column(JsonDocument, default=dict)
    bytes_up: Mapped[int] = mapped_column(BigInteger, default=0)
    bytes_down: Mapped[int] = mapped_column(BigInteger, default=0)


class Envelope(Base):
    """Sealed end to end: the owner relays it and cannot read it."""

    __tablename__ = "envelopes"

    round: Mapped[str] = mapped_column(ForeignKey("rounds.id"), primary_key=True)
    dealer: Mapped[str] = mapped_column(String(64), primary_key=True)
    holder: Mapped[str] = mapped_column(String(64), primary_key=True)
    sealed: Mapped[str] = mapped_column(Text)


class Event(Base):
    __tablename__ = "run_events"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    run: Mapped[str] = mapped_column(ForeignKey("runs.id"), index=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    kind: Mapped[str] = mapped_column(String(32))
    round: Mapped[int | None]
    node: Mapped[str | None] = mapped_column(String(64))
    detail: Mapped[dict[str, Any]] = mapped_column(JsonDocument, default=dict)
