"""The table of programs that owners have sent or this site has approved, and every query on it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import String, Text, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from primia.chassis.db import UtcDateTime
from primia.errors import LocalError, NotFound
from primia.messages.rounds import Proposal
from services.data_node.tables import Base


class NotApproved(LocalError):
    code = "program-not-approved"
    title = "This site has not approved the program"
    status = 409


class KnownProgram(Base):
    """``document``: its canonical JSON, once a run has come with it."""

    __tablename__ = "programs"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    document: Mapped[str | None] = mapped_column(Text)
    owner: Mapped[str | None] = mapped_column(String(64))
    model: Mapped[str | None] = mapped_column(String(64))
    seen: Mapped[datetime | None] = mapped_column(UtcDateTime)
    approved: Mapped[datetime | None] = mapped_column(UtcDateTime)
    approved_by: Mapped[str | None] = mapped_column(String(64))


def programs(session: Session) -> Sequence[KnownProgram]:
    """Those that wait come first."""
    wanted = select(KnownProgram).order_by(
        KnownProgram.approved.is_not(None), KnownProgram.seen, KnownProgram.digest
    )
    return session.scalars(wanted).all()


def find(session: Session, digest: str) -> KnownProgram:
    row = session.get(KnownProgram, digest)
    if row is None:
        raise NotFound(
            f"No run has come with a program {digest}.", hint="GET /programs lists those known."
        )
    return row


def take_in(session: Session, proposal: Proposal, now: datetime) -> None:
    """Keep the program that a run comes with, to be looked at."""
    if proposal.program is None:
        return
    row = _row(session, proposal.program.digest)
    if row.document is None:
        row.document, row.seen = proposal.program.text, now
        row.owner, row.model = proposal.owner, proposal.model.name


def approve(session: Session, digest: str, by: str, now: datetime) -> KnownProgram:
    """Before or after a run has come with it; the first approval stands."""
    row = _row(session, digest)
    if row.approved is None:
        row.approved, row.approved_by = now, by
    return row


def revoke(session: Session, digest: str) -> None:
    row = find(session, digest)
    row.approved = row.approved_by = None


def objection(session: Session, proposal: Proposal) -> str | None:
    """Why this site does not run what the proposal comes with."""
    if proposal.program is None:
        return None
    digest = proposal.program.digest
    row = session.get(KnownProgram, digest)
    if row is not None and row.approved is not None:
        return None
    return f"The model is a program that this site has not approved: SHA-256 {digest}."


def check_approved(session: Session, proposal: Proposal) -> None:
    """Raises NotApproved; asked before each use, since an approval may be revoked."""
    found = objection(session, proposal)
    if found:
        raise NotApproved(found, hint="GET /programs describes it; a user of this site approves.")


def _row(session: Session, digest: str) -> KnownProgram:
    row = session.get(KnownProgram, digest, with_for_update=True)
    if row is None:
        row = KnownProgram(digest=digest)
        session.add(row)
        session.flush()
    return row
