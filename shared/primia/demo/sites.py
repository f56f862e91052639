"""The images of the demonstration: each hospital gets its own, no patient stands at two.

Images are copied into the hospital's own directory, as they would lie on its own disks; the test
images (which no site trains on) stay beside them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from primia.errors import InvalidInput
from primia.grid.layout import Grid
from primia.learning import datasets, synthetic
from primia.learning.manifest import DatasetManifest, Entry, partition, sample, split

DRAWN_PATIENTS_A_CLASS = 120
DRAWN_IMAGES = 1200
_TEST_FRACTION = 0.1
_VERSION = 1


@dataclass(frozen=True)
class Sites:
    """``folders``: one a node, in the grid's order; ``tests``: (file, label), not trained on."""

    source: str
    classes: tuple[str, ...]
    folders: tuple[Path, ...]
    counts: tuple[int, ...]
    tests: tuple[tuple[Path, str], ...]


def prepare(grid: Grid, data: Path | None, per_site: int, tests: int, seed: int) -> Sites:
    """Partition ``data`` (or images drawn for the purpose) over the grid's nodes; kept for later
    demonstrations on the same images."""
    if data is not None:
        root, source = data.absolute(), f"radiographs of {data}"
        if not root.is_dir():
            raise InvalidInput(
                f"There is no folder {data}.", hint="Give a folder of class folders."
            )
    else:
        root, source = grid.root / "drawn", "radiograph-like images drawn by this program"
        _draw(root, seed)
    train_root, test_root = _parts(root)
    key = json.dumps([str(root), per_site, tests, seed, len(grid.nodes), _VERSION])
    name = "demo-" + hashlib.sha256(key.encode()).hexdigest()[:8]
    training, testing = _manifests(train_root, test_root, seed)
    parts = partition(training, len(grid.nodes), seed)
    chosen = [sample(part, min(per_site, len(part)), seed) for part in parts]
    folders = [grid.home(node) / "images" / name for node in grid.nodes]
    for manifest, folder in zip(chosen, folders, strict=True):
        _copy(manifest.entries, train_root, folder)
    picked = sample(testing, min(tests, len(testing)), seed)
    test_folder = grid.root / "tests" / name
    _copy(picked.entries, test_root or train_root, test_folder)
    return Sites(
        source=source,
        classes=training.classes,
        folders=tuple(folders),
        counts=tuple(len(manifest) for manifest in chosen),
        tests=tuple((test_folder / entry.path, entry.label) for entry in picked.entries),
    )


def _parts(root: Path) -> tuple[Path, Path | None]:
    """A folder may itself hold ``train`` and ``test``."""
    if (root / "train").is_dir() and (root / "test").is_dir():
        return root / "train", root / "test"
    return root, None


def _manifests(
    train: Path, test: Path | None, seed: int
) -> tuple[DatasetManifest, DatasetManifest]:
    whole = _listed(train)
    if test is not None:
        return whole, _listed(test)
    return split(whole, _TEST_FRACTION, seed)


def _listed(root: Path) -> DatasetManifest:
    """Every file that looks like an image; the nodes read and check theirs at registration."""
    listing = datasets.scan_folder(root)
    if not listing.candidates:
        raise InvalidInput(f"No images are in {root}.", hint="Give a folder with a folder a class.")
    empty = "0" * 64
    return DatasetManifest.of(Entry(c.path, c.label, c.patient, empty) for c in listing.candidates)


def _copy(entries: Sequence[Entry], source: Path, target: Path) -> None:
    """Into a new folder that appears when it is complete."""
    if target.exists():
        return
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for entry in entries:
        place = partial / entry.path
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / entry.path, place)
    partial.replace(target)


def _draw(root: Path, seed: int) -> None:
    if not root.exists():
        partial = root.with_name(root.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        each = DRAWN_IMAGES // 3
        synthetic.draw_dataset(partial, each, DRAWN_PATIENTS_A_CLASS, seed)
        partial.replace(root)
