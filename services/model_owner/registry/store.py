"""Tables of models, their versions and the nodes' last visits, and every query on them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, cast

from sqlalchemy import (
    BigInteger,
    ForeignKey,
    String,
    Text,
    UniqueConstraint,
    delete,
    func,
    or_,
    select,
)
from sqlalchemy.orm import Mapped, Session, mapped_column

from primia.chassis.db import JsonDocument, UtcDateTime
from primia.chassis.leases import LeaseMixin
from primia.errors import Conflict, NotFound
from primia.learning.spec import ModelSpec
from primia.prg import fresh_bytes
from services.model_owner.registry.domain import Size, Source, State, move
from services.model_owner.tables import Base

Visits = dict[str, datetime]


class Model(Base):
    __tablename__ = "models"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    description: Mapped[str] = mapped_column(Text, default="")
    spec: Mapped[dict[str, Any]] = mapped_column(JsonDocument)
    created: Mapped[datetime] = mapped_column(UtcDateTime)
    created_by: Mapped[str] = mapped_column(String(64))


class ModelVersion(LeaseMixin, Base):
    """``image_size`` is the one that the version was trained at; ``digest`` of its file;
    ``normalisation``: {"mean", "std"} a channel, where its run measured them."""

    __tablename__ = "model_versions"
    __table_args__ = (
        UniqueConstraint("model", "version"),
        # A run makes one version, however often its last task runs.
        UniqueConstraint("run"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    model: Mapped[str] = mapped_column(ForeignKey("models.name"), index=True)
    version: Mapped[int]
    state: Mapped[str] = mapped_column(String(12), index=True, default="preparing")
    reason: Mapped[str] = mapped_column(String(2000), default="")
    source: Mapped[str] = mapped_column(String(12))
    parent: Mapped[int | None]
    run: Mapped[str | None] = mapped_column(String(32))
    image_size: Mapped[int]
    normalisation: Mapped[dict[str, Any] | None] = mapped_column(JsonDocument)
    digest: Mapped[str | None] = mapped_column(String(64))
    bytes: Mapped[int | None] = mapped_column(BigInteger)
    parameters: Mapped[int | None] = mapped_column(BigInteger)
    buffers: Mapped[int | None] = mapped_column(BigInteger)
    metrics: Mapped[dict[str, Any] | None] = mapped_column(JsonDocument)
    created: Mapped[datetime] = mapped_column(UtcDateTime)
    created_by: Mapped[str] = mapped_column(String(64))

    @property
    def size(self) -> Size:
        assert self.parameters is not None  # of a ready version
        assert self.buffers is not None
        return Size(self.parameters, self.buffers)


class Visit(Base):
    """When an enrolled node last asked for work; the enrolment itself is a principal's file."""

    __tablename__ = "nodes"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    seen: Mapped[datetime] = mapped_column(UtcDateTime)


def add_model(
    session: Session, name: str, description: str, spec: ModelSpec, user: str, now: datetime
) -> ModelVersion:
    """The model and its version 1, in preparation. Raises Conflict where the name is taken."""
    if session.get(Model, name) is not None:
        raise Conflict(
            f"There is a model {name} already.",
            hint="Choose another name, or upload a new version of it.",
        )
    session.add(
        Model(
            name=name,
            description=description,
            spec=spec.model_dump(mode="json"),
            created=now,
            created_by=user,
        )
    )
    session.flush()
    return add_version(session, name, "initialised", user, now, image_size=spec.image_size)


def add_version(
    session: Session,
    model: str,
    source: Source,
    user: str,
    now: datetime,
    *,
    image_size: int,
    parent: int | None = None,
    run: str | None = None,
    normalisation: dict[str, Any] | None = None,
) -> ModelVersion:
    """The next version, in preparation."""
    session.get(Model, model, with_for_update=True)  # numbers are given one at a time
    newest = session.scalar(
        select(func.max(ModelVersion.version)).where(ModelVersion.model == model)
    )
    row = ModelVersion(
        id=run or fresh_bytes(16).hex(),
        model=model,
        version=(newest or 0) + 1,
        state="preparing",
        source=source,
        parent=parent,
        run=run,
        image_size=image_size,
        normalisation=normalisation,
        created=now,
        created_by=user,
    )
    session.add(row)
    session.flush()
    return row


def settle(
    row: ModelVersion,
    *,
    digest: str,
    size: int,
    layout: Size,
    metrics: dict[str, Any] | None = None,
) -> None:
    row.state, row.reason = move(state_of(row), "ready"), ""
    row.digest, row.bytes, row.metrics = digest, size, metrics
    row.parameters, row.buffers = layout.parameters, layout.buffers


def fail(row: ModelVersion, reason: str) -> None:
    row.state = move(state_of(row), "failed")
    row.reason = reason[:2000]


def state_of(row: ModelVersion) -> State:
    return cast(State, row.state)


def source_of(row: ModelVersion) -> Source:
    return cast(Source, row.source)


def find_model(session: Session, name: str) -> Model:
    row = session.get(Model, name)
    if row is None:
        raise NotFound(f"There is no model {name}.", hint="GET /models lists them.")
    return row


def spec_of(row: Model) -> ModelSpec:
    return ModelSpec.model_validate(row.spec)


def spec_at(model: Model, version: ModelVersion, image_size: int | None = None) -> ModelSpec:
    """The model's specification as this version was trained: its image size (or another that the
    caller asks for) and its normalisation. Raises InvalidInput for a size that does not fit."""
    changes = {"image_size": image_size or version.image_size, **(version.normalisation or {})}
    return ModelSpec.parse({**spec_of(model).model_dump(mode="json"), **changes})


def models(session: Session) -> Sequence[Model]:
    return session.scalars(select(Model).order_by(Model.name)).all()


def versions(session: Session, model: str) -> Sequence[ModelVersion]:
    find_model(session, model)
    wanted = select(ModelVersion).where(ModelVersion.model == model).order_by(ModelVersion.version)
    return session.scalars(wanted).all()


def newest(session: Session, model: str) -> ModelVersion:
    """The newest version in whatever state."""
    return versions(session, model)[-1]


def find_version(session: Session, model: str, version: int) -> ModelVersion:
    find_model(session, model)
    row = session.scalar(
        select(ModelVersion).where(ModelVersion.model == model, ModelVersion.version == version)
    )
    if row is None:
        raise NotFound(
            f"Model {model} has no version {version}.", hint=f"GET /models/{model}/versions."
        )
    return row


def ready_version(session: Session, model: str, version: int | None) -> ModelVersion:
    """The version asked for, or the newest that is ready. Raises NotFound or Conflict."""
    if version is None:
        ready = [row for row in versions(session, model) if row.state == "ready"]
        row = ready[-1] if ready else newest(session, model)
    else:
        row = find_version(session, model, version)
    if row.state != "ready":
        because = f": {row.reason}" if row.reason else ""
        raise Conflict(
            f"Version {row.version} of model {model} is {row.state}{because}.",
            hint="Wait until it is ready." if row.state == "preparing" else "Choose another.",
            state=row.state,
        )
    return row


def made_by(session: Session, run: str) -> ModelVersion | None:
    return session.scalar(select(ModelVersion).where(ModelVersion.run == run))


def being_prepared(session: Session) -> Sequence[str]:
    """Ids of all versions that are not settled, held by a worker or not."""
    wanted = select(ModelVersion.id).where(ModelVersion.state == "preparing")
    return session.scalars(wanted).all()


def preparing(session: Session, now: datetime) -> Sequence[str]:
    """Ids of versions that want their task and that no worker holds."""
    wanted = select(ModelVersion.id).where(
        ModelVersion.state == "preparing",
        or_(ModelVersion.lease_until.is_(None), ModelVersion.lease_until < now),
    )
    return session.scalars(wanted).all()


def visited(session: Session, node: str, now: datetime) -> None:
    row = session.get(Visit, node)
    if row is None:
        session.add(Visit(name=node, seen=now))
    else:
        row.seen = now


def visits(session: Session) -> Visits:
    return {row.name: row.seen for row in session.scalars(select(Visit))}


def forget_visits(session: Session, node: str) -> None:
    session.execute(delete(Visit).where(Visit.name == node))
