"""The data set that this site trains a run on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from primia.errors import NotFound
from primia.learning.manifest import DatasetManifest
from services.data_node.datasets import store as datasets
from services.data_node.datasets.store import Dataset
from services.data_node.training.tables import Run


@dataclass(frozen=True)
class Site:
    """``root``: what the manifest's paths are relative to."""

    dataset: str
    root: Path
    manifest: DatasetManifest


def site_of(session: Session, run: Run) -> Site:
    row = session.get(Dataset, run.dataset) if run.dataset else None
    if row is None:
        raise NotFound("The run's data set is no longer registered.")
    place = Path(row.place)
    root = place.parent if row.kind == "csv" else place
    return Site(row.id, root, datasets.manifest(session, row))
