"""Tables of studies and every query on them: all that a search knows stands here."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, cast

from sqlalchemy import ForeignKey, String, or_, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from primia.chassis.db import JsonDocument, UtcDateTime
from primia.chassis.leases import LeaseMixin
from primia.errors import NotFound
from primia.messages.studies import (
    StudyReport,
    StudyRequest,
    StudyState,
    StudySummary,
    TrialReport,
)
from services.model_owner.studies.domain import Past
from services.model_owner.tables import Base

REASON = 2000


class Study(LeaseMixin, Base):
    """``trials``: how many are wanted; ``continued``: how many there were when it last went on;
    ``versions``: model -> the version that its trials start from; ``reason`` of a running one: what
    its next trials wait for."""

    __tablename__ = "studies"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    state: Mapped[str] = mapped_column(String(12), index=True)
    reason: Mapped[str] = mapped_column(String(REASON), default="")
    request: Mapped[dict[str, Any]] = mapped_column(JsonDocument)
    versions: Mapped[dict[str, Any]] = mapped_column(JsonDocument, default=dict)
    trials: Mapped[int]
    continued: Mapped[int] = mapped_column(default=0)
    created: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    created_by: Mapped[str] = mapped_column(String(64))
    ended: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Trial(Base):
    """``place``: the group of sites that its run is at; ``reports``: [rounds done, measure]."""

    __tablename__ = "trials"

    study: Mapped[str] = mapped_column(ForeignKey("studies.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(String(12))
    reason: Mapped[str] = mapped_column(String(REASON), default="")
    run: Mapped[str] = mapped_column(String(32))
    place: Mapped[int]
    parameters: Mapped[dict[str, Any]] = mapped_column(JsonDocument)
    value: Mapped[float | None]
    reports: Mapped[list[Any]] = mapped_column(JsonDocument, default=list)


def find(session: Session, study: str, *, lock: bool = False) -> Study:
    row = session.get(Study, study, with_for_update=lock, populate_existing=lock)
    if row is None:
        raise NotFound(f"There is no study {study}.", hint="GET /studies lists them.")
    return row


def listing(session: Session, limit: int) -> Sequence[Study]:
    """Newest first."""
    wanted = select(Study).order_by(Study.created.desc(), Study.id.desc()).limit(limit)
    return session.scalars(wanted).all()


def trials(session: Session, study: str) -> Sequence[Trial]:
    wanted = select(Trial).where(Trial.study == study).order_by(Trial.number)
    return session.scalars(wanted).all()


def active(session: Session, now: datetime) -> Sequence[str]:
    free = or_(Study.lease_until.is_(None), Study.lease_until < now)
    return session.scalars(select(Study.id).where(Study.state == "running", free)).all()


def state_of(row: Study) -> StudyState:
    return cast(StudyState, row.state)


def request_of(row: Study) -> StudyRequest:
    return StudyRequest.model_validate(row.request)


def past(rows: Sequence[Trial]) -> list[Past]:
    return [
        Past(row.state, row.parameters, row.value, {int(k): v for k, v in row.reports})
        for row in rows
    ]


def summary(row: Study, rows: Sequence[Trial]) -> StudySummary:
    return StudySummary.model_validate(_summary(row, rows))


def report(row: Study, rows: Sequence[Trial], importance: dict[str, float]) -> StudyReport:
    return StudyReport.model_validate(
        {
            **_summary(row, rows),
            "request": request_of(row),
            "reports": tuple(_trial(each) for each in rows),
            "importance": importance,
        }
    )


def _summary(row: Study, rows: Sequence[Trial]) -> dict[str, object]:
    complete = [each for each in rows if each.state == "complete" and each.value is not None]
    request = request_of(row)
    sign = 1 if request.objective == "loss" else -1
    best = min(complete, key=lambda each: sign * (each.value or 0.0), default=None)
    return {
        "id": row.id,
        "state": row.state,
        "reason": row.reason,
        "model": request.run.model,
        "trials": row.trials,
        "done": sum(each.state != "running" for each in rows),
        "best": None if best is None else _trial(best),
        "created": row.created,
        "created_by": row.created_by,
        "ended": row.ended,
    }


def _trial(row: Trial) -> TrialReport:
    return TrialReport.model_validate(
        {
            "number": row.number,
            "state": row.state,
            "run": row.run or None,  # none where it could not start
            "parameters": row.parameters,
            "value": row.value,
            "reports": {int(k): v for k, v in row.reports},
            "reason": row.reason,
        }
    )
