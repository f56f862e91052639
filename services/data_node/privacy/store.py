"""The ledger: what each round of training on this site's images has released, for good."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import String, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from primia.chassis.db import UtcDateTime
from primia.learning.accounting import Release
from services.data_node.tables import Base


class Charge(Base):
    """A round at this site, entered with its report, before anything of it leaves. Without noise
    the last three are null. ``dataset``: its id, so that a name given anew starts anew."""

    __tablename__ = "privacy_charges"

    run: Mapped[str] = mapped_column(String(32), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(String(64), index=True)
    dataset: Mapped[str] = mapped_column(String(32), index=True)
    dataset_name: Mapped[str] = mapped_column(String(64))
    created: Mapped[datetime] = mapped_column(UtcDateTime)
    noise_multiplier: Mapped[float | None]
    sample_rate: Mapped[float | None]
    steps: Mapped[int | None]

    @property
    def release(self) -> Release | None:
        if self.noise_multiplier is None or self.sample_rate is None or self.steps is None:
            return None
        return Release(self.noise_multiplier, self.sample_rate, self.steps)


def charges(session: Session, owner: str | None = None, dataset: str | None = None) -> list[Charge]:
    """The oldest first."""
    wanted = select(Charge).order_by(Charge.created, Charge.run, Charge.round)
    if owner is not None:
        wanted = wanted.where(Charge.owner == owner)
    if dataset is not None:
        wanted = wanted.where(Charge.dataset == dataset)
    return list(session.scalars(wanted))


def releases(rows: Sequence[Charge]) -> list[Release]:
    """Those with noise; equal ones as one of more steps, which costs the same and counts faster."""
    steps: dict[tuple[float, float], int] = {}
    for release in filter(None, (row.release for row in rows)):
        key = release.noise_multiplier, release.sample_rate
        steps[key] = steps.get(key, 0) + release.steps
    return [Release(sigma, rate, count) for (sigma, rate), count in steps.items()]
