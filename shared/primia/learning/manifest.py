"""What a data set holds: a list of files with label and patient, fixed by a digest.

A manifest never leaves its institution (file names and patients are private); counts and digest
may. All choices below follow from a seed and the patients' names, by SHA-256: the same on every
machine, and independent of the order of files on disk.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from primia.errors import InvalidInput

VERSION = 1


class MalformedManifest(InvalidInput):
    """JSON that is no manifest."""

    code = "malformed-manifest"
    title = "Data set manifest refused"


@dataclass(frozen=True, slots=True)
class Entry:
    """An image: POSIX path relative to the data set's root, class, patient, SHA-256 (hex).

    For segmentation also its mask's path and SHA-256; the class is then the highest class number
    in the mask, by which splits are balanced."""

    path: str
    label: str
    patient: str
    sha256: str
    mask: str = ""
    mask_sha256: str = ""


@dataclass(frozen=True)
class DatasetManifest:
    """The images of a data set, sorted by path; ``classes`` in the order of the model's outputs."""

    classes: tuple[str, ...]
    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, entries: Iterable[Entry], classes: Iterable[str] | None = None) -> DatasetManifest:
        """Sorted by path; the classes are the labels that occur, sorted, unless given."""
        ordered = tuple(sorted(entries, key=lambda entry: entry.path))
        found = {entry.label for entry in ordered}
        names = tuple(sorted(found)) if classes is None else tuple(classes)
        if not found <= set(names):
            raise MalformedManifest(f"The labels {sorted(found - set(names))} are not classes.")
        return cls(names, ordered)

    def __len__(self) -> int:
        return len(self.entries)

    @cached_property
    def counts(self) -> dict[str, int]:
        """Images a class."""
        found = Counter(entry.label for entry in self.entries)
        return {name: found[name] for name in self.classes}

    @property
    def segments(self) -> bool:
        """Whether its images have masks."""
        return any(entry.mask for entry in self.entries)

    @cached_property
    def patients(self) -> int:
        """Number of patients."""
        return len({entry.patient for entry in self.entries})

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over classes, names, labels, patients and the files' contents."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def labels(self, classes: tuple[str, ...] | None = None) -> NDArray[np.int64]:
        """Class index of each image, shape (len(self),), in the order of a model's classes (or
        of this manifest's). Raises InvalidInput for a label that the model does not know."""
        index = {name: number for number, name in enumerate(classes or self.classes)}
        unknown = sorted({entry.label for entry in self.entries} - index.keys())
        if unknown:
            raise InvalidInput(
                f"The model does not know the data set's classes {', '.join(unknown)}.",
                hint=f"The model's classes are: {', '.join(index)}.",
            )
        return np.array([index[entry.label] for entry in self.entries], dtype=np.int64)

    def only(self, patients: Iterable[str]) -> DatasetManifest:
        """The images of these patients, with the same classes."""
        kept = set(patients)
        return DatasetManifest(
            self.classes, tuple(entry for entry in self.entries if entry.patient in kept)
        )

    def to_json(self) -> str:
        rows = [_row(entry) for entry in self.entries]
        document = {"version": VERSION, "classes": list(self.classes), "entries": rows}
        return json.dumps(document, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def parse(cls, text: str | bytes) -> DatasetManifest:
        """The inverse of ``to_json``. Raises MalformedManifest."""
        try:
            document = json.loads(text)
            if document["version"] != VERSION or set(document) != {"version", "classes", "entries"}:
                raise MalformedManifest(f"The manifest is not of version {VERSION}.")
            entries = [Entry(**row) for row in document["entries"]]
            classes = tuple(document["classes"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise MalformedManifest("The data set's manifest does not parse.") from None
        fields = [value for entry in entries for value in asdict(entry).values()] + [*classes]
        if not all(isinstance(value, str) for value in fields):
            raise MalformedManifest("The manifest's fields are texts.")
        return cls.of(entries, classes)


def _row(entry: Entry) -> dict[str, str]:
    row: dict[str, str] = asdict(entry)
    return row if entry.mask else {key: row[key] for key in row if not key.startswith("mask")}


def split(
    manifest: DatasetManifest, validation: float, seed: int
) -> tuple[DatasetManifest, DatasetManifest]:
    """(training, validation), disjoint by patient, each class with about its share.

    Every class keeps images to train on, and is validated on where at least two patients show it
    most, unless one of them shows the last images of another class. Raises InvalidInput unless
    0 <= validation < 1.
    """
    if not 0 <= validation < 1:
        raise InvalidInput(f"The share for validation is 0 to below 1, not {validation}.")
    held: list[str] = []
    if validation > 0:
        left = Counter(entry.label for entry in manifest.entries)
        for groups in _patients_by_class(manifest, f"split/{seed}").values():
            wanted = validation * sum(len(images) for images in groups.values())
            held += _first(groups, wanted, at_most=len(groups) - 1, left=left)
    out = set(held)
    everyone = {entry.patient for entry in manifest.entries}
    return manifest.only(everyone - out), manifest.only(out)


def partition(manifest: DatasetManifest, sites: int, seed: int) -> tuple[DatasetManifest, ...]:
    """As many manifests as sites, disjoint by patient, each class spread about evenly.

    Raises InvalidInput where a site would get no image of some class.
    """
    if sites < 1:
        raise InvalidInput(f"A partition has at least one site, not {sites}.")
    assigned: list[list[str]] = [[] for _ in range(sites)]
    total = [0] * sites
    for label, groups in _patients_by_class(manifest, f"partition/{seed}").items():
        if len(groups) < sites:
            raise InvalidInput(
                f"Class {label!r} has {len(groups)} patients: too few for {sites} sites.",
                hint="Use fewer sites or more images.",
            )
        share = [0] * sites
        for patient, images in groups.items():
            site = min(range(sites), key=lambda number: (share[number], total[number], number))
            assigned[site].append(patient)
            share[site] += len(images)
            total[site] += len(images)
    parts = tuple(manifest.only(patients) for patients in assigned)
    for name in sorted({entry.label for entry in manifest.entries}):
        if not all(part.counts[name] for part in parts):
            raise InvalidInput(
                f"Class {name!r} has too few patients of its own for {sites} sites.",
                hint="Use fewer sites or more images.",
            )
    return parts


def sample(manifest: DatasetManifest, images: int, seed: int) -> DatasetManifest:
    """About ``images`` images, whole patients, classes in proportion; all where there are fewer."""
    if images >= len(manifest):
        return manifest
    kept: list[str] = []
    for groups in _patients_by_class(manifest, f"sample/{seed}").values():
        wanted = images * sum(len(files) for files in groups.values()) / len(manifest)
        kept += _first(groups, wanted, at_most=len(groups))
    return manifest.only(kept)


def _patients_by_class(
    manifest: DatasetManifest, purpose: str
) -> dict[str, dict[str, list[Entry]]]:
    """Class → patient → images, patients in pseudorandom order; a patient with images of several
    classes counts for the one with the most."""
    images: dict[str, list[Entry]] = defaultdict(list)
    for entry in manifest.entries:
        images[entry.patient].append(entry)
    groups: dict[str, dict[str, list[Entry]]] = {name: {} for name in manifest.classes}
    for patient in sorted(images, key=lambda name: _rank(purpose, name)):
        labels = Counter(entry.label for entry in images[patient])
        main = max(sorted(labels), key=lambda name: labels[name])
        groups[main][patient] = images[patient]
    return {name: group for name, group in groups.items() if group}


def _rank(purpose: str, patient: str) -> bytes:
    return hashlib.sha256(f"{purpose}/{patient}".encode()).digest()


def _first(
    groups: dict[str, list[Entry]], wanted: float, at_most: int, left: Counter[str] | None = None
) -> list[str]:
    """Patients from the front until about ``wanted`` images; at least one, where allowed.

    ``left``: images a class that nobody has taken, kept up to date; nobody takes a class's last.
    """
    taken: list[str] = []
    images = 0
    for patient, files in groups.items():
        over = images + len(files) / 2 > wanted
        if len(taken) >= at_most or (taken and over):
            break
        if left is not None:
            labels = Counter(entry.label for entry in files)
            if any(left[name] == count for name, count in labels.items()):
                continue
            left.subtract(labels)
        taken.append(patient)
        images += len(files)
    return taken
