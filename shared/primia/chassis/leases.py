"""Leases: a job is a row, and one worker at a time holds it.

A lease that is not renewed (its worker died) runs out, and another worker may claim the row. The
holder renews in the background; work that must not be done twice checks ``lost`` before it commits.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import CursorResult, or_, update
from sqlalchemy.orm import Mapped, mapped_column

from primia.chassis.clock import Clock
from primia.chassis.db import Database, UtcDateTime
from primia.chassis.telemetry import get_logger
from primia.prg import fresh_bytes

log = get_logger(__name__)


class LeaseMixin:
    """Columns of a row that one worker at a time works on; the primary key must be ``id``."""

    lease_owner: Mapped[str | None] = mapped_column(default=None)
    lease_until: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    attempts: Mapped[int] = mapped_column(default=0)


@dataclass
class Held:
    """A lease in hand; ``attempt`` counts the claims of this row, from 1."""

    owner: str
    attempt: int = 1
    lost: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def lease(
    db: Database, clock: Clock, table: Any, row_id: str | int, seconds: float = 30
) -> Iterator[Held | None]:
    """Hold the row while the block runs; yields None if another worker holds it."""
    held = Held(owner=fresh_bytes(8).hex())
    if not _claim(db, clock, table, row_id, held, seconds):
        yield None
        return
    done = threading.Event()
    keeper = threading.Thread(
        target=_keep, args=(db, clock, table, row_id, held, seconds, done), daemon=True
    )
    keeper.start()
    try:
        yield held
    finally:
        done.set()
        keeper.join()
        _release(db, table, row_id, held)


def _claim(
    db: Database, clock: Clock, table: Any, row_id: str | int, held: Held, seconds: float
) -> bool:
    free = or_(table.lease_until.is_(None), table.lease_until < clock.now())
    with db.session() as session:
        claimed = session.execute(
            update(table)
            .where(table.id == row_id, free)
            .values(
                lease_owner=held.owner,
                lease_until=clock.after(seconds),
                attempts=table.attempts + 1,
            )
            .execution_options(synchronize_session=False)
        )
        if not _one(claimed):
            return False
        row = session.get(table, row_id)
        held.attempt = row.attempts if row is not None else 1
    return True


def _keep(
    db: Database,
    clock: Clock,
    table: Any,
    row_id: str | int,
    held: Held,
    seconds: float,
    done: threading.Event,
) -> None:
    while not done.wait(seconds / 3):
        try:
            if not _set(db, table, row_id, held, lease_until=clock.after(seconds)):
                held.lost.set()
                return
        except Exception as error:  # noqa: BLE001  # tried again until the lease has run out
            log.warning("a lease could not be renewed", error=type(error).__name__)


def _release(db: Database, table: Any, row_id: str | int, held: Held) -> None:
    with contextlib.suppress(Exception):  # it runs out by itself
        _set(db, table, row_id, held, lease_owner=None, lease_until=None)


def _set(db: Database, table: Any, row_id: str | int, held: Held, **values: object) -> bool:
    with db.session() as session:
        changed = session.execute(
            update(table)
            .where(table.id == row_id, table.lease_owner == held.owner)
            .values(**values)
            .execution_options(synchronize_session=False)
        )
        return _one(changed)


def _one(result: Any) -> bool:
    assert isinstance(result, CursorResult)
    return result.rowcount == 1
