"""Tables of training at this site.

``work_items`` is inbox and outbox in one: what the owner asked, once a run, round and kind, and the
answer, stored before it is sent and sent again as it is.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    ForeignKey,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import Mapped, mapped_column

from primia.chassis.db import JsonDocument, UtcDateTime
from primia.chassis.leases import LeaseMixin
from primia.messages.rounds import (
    WORK_ITEM,
    Proposal,
    WorkItem,
)
from services.data_node.tables import Base

MAX_TEXT = 2000


class Run(Base):
    """A run that this site was asked to join. ``slot`` is unique and held by the one active run."""

    __tablename__ = "run_approvals"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    model: Mapped[str] = mapped_column(String(64))
    proposal: Mapped[str] = mapped_column(Text)
    digest: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(12), index=True)
    slot: Mapped[int | None] = mapped_column(unique=True)
    reason: Mapped[str] = mapped_column(String(MAX_TEXT), default="")
    dataset: Mapped[str | None] = mapped_column(String(32))
    dataset_name: Mapped[str | None] = mapped_column(String(64))
    decided_by: Mapped[str | None] = mapped_column(String(64))
    rounds_done: Mapped[int] = mapped_column(default=0)
    evaluation: Mapped[dict[str, Any] | None] = mapped_column(JsonDocument)
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_detail: Mapped[str | None] = mapped_column(String(MAX_TEXT))
    created: Mapped[datetime] = mapped_column(UtcDateTime)
    decided: Mapped[datetime | None] = mapped_column(UtcDateTime)
    ended: Mapped[datetime | None] = mapped_column(UtcDateTime)

    def read_proposal(self) -> Proposal:
        return Proposal.model_validate_json(self.proposal)


class Round(Base):
    """This site's part in one round; ``kind`` is domain.RoundKind, ``phase`` domain.Phase;
    ``report``: of training, empty where the round measured."""

    __tablename__ = "local_rounds"

    run: Mapped[str] = mapped_column(ForeignKey("run_approvals.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(12), default="train")
    phase: Mapped[str] = mapped_column(String(12))
    report: Mapped[dict[str, Any]] = mapped_column(JsonDocument)
    created: Mapped[datetime] = mapped_column(UtcDateTime)


class RoundSecret(Base):
    """The state of secure aggregation (primia.aggregation.state), sealed, while the round lasts."""

    __tablename__ = "round_secrets"

    run: Mapped[str] = mapped_column(ForeignKey("run_approvals.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    sealed: Mapped[bytes] = mapped_column(LargeBinary)


class WorkRow(LeaseMixin, Base):
    __tablename__ = "work_items"
    __table_args__ = (UniqueConstraint("run", "round", "kind"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    run: Mapped[str] = mapped_column(String(32), index=True)
    round: Mapped[int]
    kind: Mapped[str] = mapped_column(String(12))
    digest: Mapped[str] = mapped_column(String(64))
    body: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(12), index=True)
    path: Mapped[str | None] = mapped_column(String(200))
    answer: Mapped[str | None] = mapped_column(Text)
    not_before: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created: Mapped[datetime] = mapped_column(UtcDateTime)
    answered: Mapped[datetime | None] = mapped_column(UtcDateTime)
    sent: Mapped[datetime | None] = mapped_column(UtcDateTime)

    def read_item(self) -> WorkItem:
        return WORK_ITEM.validate_json(self.body)


class RunEvent(Base):
    __tablename__ = "run_events"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    run: Mapped[str] = mapped_column(String(32), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    data: Mapped[dict[str, Any]] = mapped_column(JsonDocument)
    created: Mapped[datetime] = mapped_column(UtcDateTime)


class Agent(LeaseMixin, Base):
    """One row a model owner: who holds its lease asks that owner for work."""

    __tablename__ = "agents"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
