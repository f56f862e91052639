"""Data sets for segmentation: images with masks, found and checked file by file.

A mask is a PNG file of its image's size with one channel (grey, palette or bits). Its values are
class numbers, 0 (background) to 31; or 0 and 255 alone, which is background and class 1. A folder
has ``images/`` and ``masks/`` with the same names but for the suffix, in the same subfolders.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from primia.errors import InvalidInput
from primia.learning import images
from primia.learning.datasets import (
    MAX_FILES,
    Candidate,
    Inspection,
    Look,
    Problem,
    Progress,
    check_folder,
    encodable,
    files_below,
    named_as_image,
    patient_in,
    printable,
    safe_path,
)
from primia.learning.manifest import DatasetManifest, Entry
from primia.learning.patients import compile_pattern, patient_of

# Counted up when ``decode`` yields other classes for the same file.
VERSION = 1
MAX_CLASSES = 32  # of pixels; as many as figures are counted for (evaluation.counts)
_BINARY = 255
_ORIENTATION = 0x0112  # EXIF
_FOLDERS = ("images", "masks")


@dataclass(frozen=True, slots=True)
class Pair:
    image: Candidate
    mask: str


@dataclass(frozen=True)
class Listing:
    """What stands in a folder, before any file is read."""

    root: Path
    pairs: tuple[Pair, ...]
    problems: tuple[Problem, ...]


def scan_folder(root: Path, patient_pattern: str | None = None) -> Listing:
    """Every image below ``images`` with the mask of its name below ``masks``."""
    check_folder(root)
    for name in _FOLDERS:
        if not (root / name).is_dir() or (root / name).is_symlink():
            raise InvalidInput(
                f"There is no folder {name!r} in it.",
                hint="A data set for segmentation has the folders images and masks.",
            )
    pattern = compile_pattern(patient_pattern) if patient_pattern else None
    problems: list[Problem] = []
    there = set(files_below(root, "masks", problems))
    pairs: list[Pair] = []
    taken: dict[str, str] = {}
    for path in files_below(root, "images", problems):
        if not named_as_image(root, path):
            problems.append(Problem(printable(path), "has no image's suffix: left out", "note"))
            continue
        if not encodable(path):
            problems.append(Problem(printable(path), "has a name that is not UTF-8"))
            continue
        below = PurePosixPath(path).relative_to("images")
        bare = below.with_suffix("") if below.suffix.lower() in images.SUFFIXES else below
        mask = str("masks" / bare.with_name(f"{bare.name}.png"))
        if taken.setdefault(mask, path) != path:
            problems.append(Problem(path, f"has the mask of {taken[mask]}: rename one of the two"))
            continue
        image = Candidate(path, "", patient_of(path, pattern), pattern is not None)
        pairs.append(Pair(image, mask))
        _check_number(pairs)
    for mask in sorted(there - {pair.mask for pair in pairs}):
        problems.append(Problem(printable(mask), "is the mask of no image: left out", "note"))
    return Listing(root, tuple(pairs), tuple(problems))


def _check_number(pairs: list[Pair]) -> None:
    if len(pairs) > MAX_FILES:
        raise InvalidInput(f"A data set has at most {MAX_FILES} files.")


def inspect(listing: Listing, progress: Progress | None = None) -> Inspection:
    """Every image and mask read and checked. A data set is fit for use if there are no errors."""
    entries: list[Entry] = []
    seen: list[tuple[bool, tuple[int, int]]] = []
    problems = list(listing.problems)
    binary: set[bool] = set()
    first: dict[str, Entry] = {}
    for done, pair in enumerate(listing.pairs, start=1):
        try:
            entry, kind, look = _checked(listing.root, pair)
        except _Wrong as error:
            problems.append(Problem(printable(error.path), error.reason))
        else:
            earlier = first.setdefault(entry.sha256, entry)
            if earlier is entry:
                entries.append(entry)
                seen.append(look)
                binary |= kind
            else:
                problems.append(_duplicate(entry, earlier))
        if progress:
            progress(done, len(listing.pairs))
    whole = list(_whole(entries, binary))
    numbers = [str(n) for n in range(1 + max((int(e.label) for e in entries), default=0))]
    manifest = None if whole else DatasetManifest.of(entries, numbers)
    return Inspection(manifest, tuple(problems + whole), Look.of(seen))


def _whole(entries: list[Entry], binary: set[bool]) -> Iterator[Problem]:
    if not entries:
        yield Problem("", "it holds no image with a mask that can be used")
    elif len(binary) > 1:
        yield Problem("", "some masks have the value 255 and others class numbers above 1")
    elif all(entry.label == "0" for entry in entries):
        yield Problem("", "every mask is background alone")


def _duplicate(entry: Entry, earlier: Entry) -> Problem:
    if entry.mask_sha256 == earlier.mask_sha256:
        return Problem(entry.path, f"is the same file as {earlier.path}: left out", "note")
    return Problem(entry.path, f"is the same file as {earlier.path}, which has another mask")


class _Wrong(Exception):  # never leaves this module
    def __init__(self, path: str, reason: str) -> None:
        super().__init__(reason)
        self.path, self.reason = path, reason


def _checked(root: Path, pair: Pair) -> tuple[Entry, set[bool], tuple[bool, tuple[int, int]]]:
    """The entry; how its classes are written: {True} with 255, {False} with numbers above 1, else
    nothing is said; whether the image is in colour, and its size. Raises _Wrong."""
    path = pair.image.path
    data = _bytes(root, path)
    try:
        colour = images.is_colour(images.decode(data, images.MIN_SIDE, 3, path))
        size = images.original_size(data, path)
    except images.ImageRejected as error:
        raise _Wrong(path, error.reason) from None
    if _turned(data):
        raise _Wrong(path, "is stored turned (EXIF): save it upright, as its mask is")
    if not (root / pair.mask).exists():
        raise _Wrong(path, f"has no mask: there is no {pair.mask}")
    mask = _bytes(root, pair.mask)
    try:
        values = _values(mask, pair.mask)
    except images.ImageRejected as error:
        raise _Wrong(pair.mask, error.reason) from None
    if values.shape[::-1] != size:
        own, wanted = (f"{w} x {h}" for w, h in (values.shape[::-1], size))
        raise _Wrong(pair.mask, f"is {own} pixels, and its image {wanted}")
    highest = int(values.max())
    kind = {highest == _BINARY} if highest > 1 else set()
    label = "1" if highest == _BINARY else str(highest)
    image_hash, mask_hash = (hashlib.sha256(each).hexdigest() for each in (data, mask))
    patient = patient_in(pair.image, data)
    entry = Entry(path, label, patient, image_hash, pair.mask, mask_hash)
    return entry, kind, (colour, size)


def _bytes(root: Path, path: str) -> bytes:
    try:
        return images.read_bytes(safe_path(root, path))
    except images.ImageRejected as error:
        raise _Wrong(path, error.reason) from None
    except InvalidInput as error:
        raise _Wrong(path, error.detail) from None


def _turned(data: bytes) -> bool:
    if images.is_dicom(data):
        return False
    with Image.open(io.BytesIO(data), formats=images.FORMATS) as image:
        return bool(image.getexif().get(_ORIENTATION, 1) != 1)


def _values(data: bytes, name: str) -> NDArray[np.uint8]:
    """As they stand in the file, uint8 (rows, columns). Raises ImageRejected."""
    try:
        images.original_size(data, name)  # bounded before anything is decoded
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.mode not in {"1", "L", "P"}:
                raise images.ImageRejected(
                    name, f"is no mask: it has samples of the kind {image.mode}, not one of 8 bits"
                )
            values: NDArray[Any] = np.asarray(image).astype(np.uint8)
    except images.DAMAGED as error:
        raise images.ImageRejected(
            name, f"is no PNG file that can be read ({type(error).__name__})"
        ) from None
    found = set(np.unique(values).tolist())
    wrong = sorted(v for v in found if v >= MAX_CLASSES)
    if wrong and not found <= {0, _BINARY}:
        raise images.ImageRejected(
            name,
            f"has the value {wrong[0]}: values are class numbers 0 to {MAX_CLASSES - 1}, "
            "or 0 and 255 alone",
        )
    return values


def decode(data: bytes, name: str, size: int) -> NDArray[np.uint8]:
    """Class numbers, uint8 (size, size): each pixel is that of the nearest in the file.

    Raises ImageRejected."""
    values = _values(data, name)
    if values.max() == _BINARY:
        values = (values == _BINARY).astype(np.uint8)
    square = Image.fromarray(values).resize((size, size), Image.Resampling.NEAREST)
    return np.asarray(square).copy()
