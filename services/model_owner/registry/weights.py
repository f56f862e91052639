"""Weights files of versions: written by the worker, read by whoever may; the one user of torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from primia.chassis.files import Files
from primia.learning.layout import Layout, Vector, read_state, write_state
from primia.learning.spec import ModelSpec
from services.model_owner.registry.domain import Size

_CHUNK = 1 << 20
FOLDER, UPLOAD = "models", ".upload"


@dataclass(frozen=True, slots=True)
class Written:
    """A weights file as it lies on the disk."""

    digest: str
    bytes: int
    size: Size


def weights_path(files: Files, version_id: str) -> Path:
    return files.path(FOLDER, f"{version_id}.safetensors")


def upload_path(files: Files, version_id: str) -> Path:
    """What a user sent, until it has been checked."""
    return files.path(FOLDER, f"{version_id}{UPLOAD}")


def calibration_path(files: Files, version_id: str) -> Path:
    """The owner's images for measuring the model's values; not every version has them."""
    return files.path(FOLDER, f"{version_id}.calibration")


def layout_of(spec: ModelSpec) -> Layout:
    from primia.learning.models import spec_layout  # torch: the API imports this module as well

    return spec_layout(spec)


def initial(spec: ModelSpec) -> Vector:
    """The weights that the seed gives; zeros for an external model, which has none here."""
    if spec.layout is not None:
        return np.zeros(spec.state_layout().size, dtype=np.float32)
    from primia.learning.models import create_model, flatten  # torch, as above

    return flatten(create_model(spec))


def read(path: Path, layout: Layout) -> Vector:
    """Raises InvalidState, naming the tensor at fault."""
    return read_state(path.read_bytes(), layout)


def write(
    files: Files, path: Path, vector: Vector, layout: Layout, metadata: dict[str, object]
) -> Written:
    """The same bytes for the same vector and metadata. Raises InvalidState, StorageFull."""
    data = write_state(vector, layout, metadata)
    files.write(path, data)
    return Written(hashlib.sha256(data).hexdigest(), len(data), size_of(layout))


def size_of(layout: Layout) -> Size:
    return Size(layout.group_size("parameters"), layout.group_size("buffers"))


def copy(files: Files, source: Path, target: Path) -> None:
    files.require(source.stat().st_size)
    with source.open("rb") as old, files.replacing(target) as new:
        while piece := old.read(_CHUNK):
            new.write(piece)
