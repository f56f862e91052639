"""Tables of registered data sets, and every query on them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from typing import Any, cast

from sqlalchemy import ForeignKey, String, Text, delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column

from primia.chassis.db import JsonDocument, UtcDateTime
from primia.chassis.leases import LeaseMixin
from primia.errors import Conflict, NotFound
from primia.learning.datasets import Inspection, Look, Problem
from primia.learning.manifest import DatasetManifest
from services.data_node.datasets.domain import (
    BadFiles,
    Kind,
    Split,
    State,
    move,
    outward,
    verdict,
)
from services.data_node.tables import Base

MAX_TEXT = 1000


class Dataset(LeaseMixin, Base):
    """``place`` and what the other two tables hold never leave this node. The two fractions are
    there from the registration or the first run on; ``look``: learning.datasets.Look."""

    __tablename__ = "datasets"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    kind: Mapped[str] = mapped_column(String(8))
    place: Mapped[str] = mapped_column(String(4096))
    patient_pattern: Mapped[str | None] = mapped_column(String(200))
    bad_files: Mapped[str] = mapped_column(String(8))
    state: Mapped[str] = mapped_column(String(12), index=True)
    reason: Mapped[str] = mapped_column(String(MAX_TEXT), default="")
    classes: Mapped[dict[str, int]] = mapped_column(JsonDocument, default=dict)
    images: Mapped[int] = mapped_column(default=0)
    patients: Mapped[int] = mapped_column(default=0)
    errors: Mapped[int] = mapped_column(default=0)
    digest: Mapped[str | None] = mapped_column(String(64))
    look: Mapped[dict[str, Any] | None] = mapped_column(JsonDocument)
    validation_fraction: Mapped[float | None]
    test_fraction: Mapped[float | None]
    created: Mapped[datetime] = mapped_column(UtcDateTime)
    validated: Mapped[datetime | None] = mapped_column(UtcDateTime)


class DatasetManifestRow(Base):
    __tablename__ = "dataset_manifests"

    dataset: Mapped[str] = mapped_column(
        ForeignKey("datasets.id", ondelete="CASCADE"), primary_key=True
    )
    document: Mapped[str] = mapped_column(Text)


class DatasetUse(Base):
    """Who needs the data set to stay: a run that trains on it."""

    __tablename__ = "dataset_uses"

    dataset: Mapped[str] = mapped_column(ForeignKey("datasets.id"), primary_key=True)
    user: Mapped[str] = mapped_column(String(80), primary_key=True)


class DatasetProblem(Base):
    __tablename__ = "dataset_problems"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    dataset: Mapped[str] = mapped_column(ForeignKey("datasets.id", ondelete="CASCADE"), index=True)
    file: Mapped[str] = mapped_column(String(MAX_TEXT))
    severity: Mapped[str] = mapped_column(String(8))
    reason: Mapped[str] = mapped_column(String(MAX_TEXT))


def register(
    session: Session,
    *,
    dataset_id: str,
    name: str,
    kind: Kind,
    place: str,
    patient_pattern: str | None,
    bad_files: BadFiles,
    now: datetime,
    split: Split | None = None,
) -> Dataset:
    """A new row in state validating; a rejected data set of that name is replaced."""
    present = session.scalar(select(Dataset).where(Dataset.name == name).with_for_update())
    if present is not None and present.state != "rejected":
        raise Conflict(
            f"There is a data set {name} already.", hint="Choose another name, or delete it first."
        )
    if present is not None:
        remove(session, present)
    row = Dataset(
        id=dataset_id,
        name=name,
        kind=kind,
        place=place,
        patient_pattern=patient_pattern,
        bad_files=bad_files,
        state="validating",
        created=now,
        validation_fraction=split.validation if split else None,
        test_fraction=split.test if split else None,
    )
    session.add(row)
    try:
        session.flush()
    except IntegrityError:  # another request was faster: PostgreSQL runs them side by side
        raise Conflict(f"There is a data set {name} already.") from None
    return row


def lock_ready(session: Session, row: Dataset) -> Dataset:
    """The row as it is now, kept so until the transaction ends. Raises Conflict where it has been
    removed meanwhile, or is not ready."""
    found = session.get(Dataset, row.id, with_for_update=True, populate_existing=True)
    if found is None:
        raise Conflict("The data set has just been removed.")
    return _ready(found)


def keep_split(row: Dataset, wanted: Split, *, others: bool) -> None:
    """The split of the data set's first run is that of all further ones, unless ``others`` may be.

    The caller has the row locked. Raises SplitOtherwise.
    """
    if row.validation_fraction is None or row.test_fraction is None:
        row.validation_fraction, row.test_fraction = wanted.validation, wanted.test
    elif not others:
        Split(row.validation_fraction, row.test_fraction).check(row.name, wanted)


def find(session: Session, name: str) -> Dataset:
    row = session.scalar(select(Dataset).where(Dataset.name == name))
    if row is None:
        raise NotFound(f"There is no data set {name}.", hint="GET /datasets lists them.")
    return row


def find_ready(session: Session, name: str) -> Dataset:
    return _ready(find(session, name))


def _ready(row: Dataset) -> Dataset:
    if row.state != "ready":
        raise Conflict(f"The data set {row.name} is {row.state}, not ready.")
    return row


def listing(session: Session, state: State | None = None) -> list[Dataset]:
    wanted = select(Dataset).order_by(Dataset.name)
    if state is not None:
        wanted = wanted.where(Dataset.state == state)
    return list(session.scalars(wanted))


def accept(
    session: Session,
    row: Dataset,
    manifest: DatasetManifest,
    now: datetime,
    look: Look | None = None,
) -> None:
    """The validation ends well: the manifest is kept, so that training sees these files alone."""
    row.state = move(_state(row), "ready")
    row.classes = dict(manifest.counts)
    row.images, row.patients, row.digest = len(manifest), manifest.patients, manifest.digest
    row.look = None if look is None else asdict(look)
    row.validated = now
    session.add(DatasetManifestRow(dataset=row.id, document=manifest.to_json()))


def reject(row: Dataset, reason: str, now: datetime) -> None:
    row.state = move(_state(row), "rejected")
    row.reason, row.validated = reason[:MAX_TEXT], now


def judge(row: Dataset, found: Inspection) -> str | None:
    """Why it is rejected, or None."""
    return verdict(found, cast(Kind, row.kind), cast(BadFiles, row.bad_files))


def manifest(session: Session, row: Dataset) -> DatasetManifest:
    found = session.get(DatasetManifestRow, row.id)
    if found is None:
        raise NotFound(f"The data set {row.name} has no manifest; it was never validated.")
    return DatasetManifest.parse(found.document)


def keep_problems(
    session: Session, row: Dataset, problems: Iterable[tuple[str, str, str]], errors: int
) -> None:
    """Replace what is known to be wrong: (file, severity, reason) each."""
    session.execute(delete(DatasetProblem).where(DatasetProblem.dataset == row.id))
    session.add_all(
        DatasetProblem(
            dataset=row.id, file=file[:MAX_TEXT], severity=severity, reason=reason[:MAX_TEXT]
        )
        for file, severity, reason in problems
    )
    row.errors = errors


def problem_page(session: Session, row: Dataset, after: int, limit: int) -> list[DatasetProblem]:
    """The problems behind the one with id ``after``, in the order they were found."""
    wanted = (
        select(DatasetProblem)
        .where(DatasetProblem.dataset == row.id, DatasetProblem.id > after)
        .order_by(DatasetProblem.id)
        .limit(limit)
    )
    return list(session.scalars(wanted))


def rejection(session: Session, row: Dataset) -> str:
    """Why it was rejected, as the model owner may know it."""
    wanted = select(DatasetProblem.file, DatasetProblem.reason).where(
        DatasetProblem.dataset == row.id, DatasetProblem.severity == "error"
    )
    errors = [Problem(file, reason) for file, reason in session.execute(wanted)]
    return outward(errors, cast(Kind, row.kind))


def hold(session: Session, row: Dataset, user: str) -> None:
    """Until ``release`` the data set cannot be removed."""
    session.add(DatasetUse(dataset=row.id, user=user))


def release(session: Session, user: str) -> None:
    session.execute(delete(DatasetUse).where(DatasetUse.user == user))


def remove(session: Session, row: Dataset) -> None:
    """Raises Conflict while it is held; whoever wants to hold it waits (``lock_ready``)."""
    if session.get(Dataset, row.id, with_for_update=True, populate_existing=True) is None:
        raise NotFound(f"There is no data set {row.name}.", hint="GET /datasets lists them.")
    user = session.scalar(select(DatasetUse.user).where(DatasetUse.dataset == row.id).limit(1))
    if user is not None:
        raise Conflict(
            f"The data set {row.name} is in use by {user}.", hint="Wait for its end, or end it."
        )
    for table in (DatasetProblem, DatasetManifestRow):
        session.execute(delete(table).where(table.dataset == row.id))
    session.delete(row)
    session.flush()


def _state(row: Dataset) -> State:
    return cast(State, row.state)
