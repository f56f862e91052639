"""Weights files of versions: written by the worker, read by whoever may."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from primia.chassis.files import Files
from primia.learning import apart
from primia.learning.layout import Layout, Vector, read_state_file, state_pieces
from primia.learning.spec import ModelSpec
from services.model_owner.registry.domain import Size

_CHUNK = 1 << 20
FOLDER, UPLOAD = "models", ".upload"
_LAYOUTS = "layouts"
# What a safetensors header has beside the values, generously.
_HEADER_BYTES = 1 << 20


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


def layout_of(files: Files, spec: ModelSpec) -> Layout:
    """Kept on the disk, so that rounds of training need no torch at the owner."""
    if spec.layout is not None:
        return spec.state_layout()
    digest = hashlib.sha256(spec.model_dump_json().encode()).hexdigest()
    path = files.path(_LAYOUTS, f"{digest}.json")
    try:
        return Layout.from_json(path.read_text())
    except FileNotFoundError:
        layout = apart.layout_of(spec)
        files.write(path, layout.to_json().encode())
        return layout


def initial(spec: ModelSpec) -> Vector:
    """The weights that the seed gives; zeros for an external model, which has none here."""
    if spec.layout is not None:
        return np.zeros(spec.state_layout().size, dtype=np.float32)
    return apart.first_weights(spec)


def read(path: Path, layout: Layout) -> Vector:
    """Raises InvalidState, naming the tensor at fault."""
    return read_state_file(path, layout)


def write(
    files: Files, path: Path, vector: Vector, layout: Layout, metadata: dict[str, object]
) -> Written:
    """The same bytes for the same vector and metadata. Raises InvalidState, StorageFull."""
    files.require(vector.nbytes + _HEADER_BYTES)
    digest, size = hashlib.sha256(), 0
    with files.replacing(path) as file:
        for piece in state_pieces(vector, layout, metadata):
            file.write(piece)
            digest.update(piece)
            size += len(piece)
    return Written(digest.hexdigest(), size, size_of(layout))


def size_of(layout: Layout) -> Size:
    return Size(layout.group_size("parameters"), layout.group_size("buffers"))


def copy(files: Files, source: Path, target: Path) -> None:
    files.require(source.stat().st_size)
    with source.open("rb") as old, files.replacing(target) as new:
        while piece := old.read(_CHUNK):
            new.write(piece)
