"""The database of a service: what a full disk does to a transaction."""

from __future__ import annotations

import pytest
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from primia.chassis.db import Database
from primia.errors import StorageFull


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


@pytest.fixture
def small(tmp_path):
    """An SQLite file that may not grow beyond 32 pages of 4096 bytes."""
    database = Database(f"sqlite:///{tmp_path / 'small.sqlite'}")
    event.listen(database.engine, "connect", lambda raw, _: raw.execute("PRAGMA max_page_count=32"))
    Base.metadata.create_all(database.engine)
    yield database
    database.close()


def write(database: Database, *texts: str) -> None:
    with database.session() as session:
        for number, text in enumerate(texts):
            session.add(Note(id=number, text=text))
            session.flush()


def test_a_full_disk_is_named_and_nothing_is_written(small):
    with pytest.raises(StorageFull, match="no free disk space"):
        write(small, "short", "x" * 200_000)
    with small.reading() as session:
        assert session.query(Note).count() == 0
    write(small, "short")
    with small.reading() as session:
        assert session.query(Note).count() == 1


def test_other_errors_of_the_database_stay_what_they_are(small):
    write(small, "short")
    with pytest.raises(IntegrityError):
        write(small, "short")
