"""Finding a data set's files and checking them one by one, before anything is trained on them.

``scan_folder`` or ``scan_csv`` list what is there, ``inspect`` reads every file. Nothing outside
the data set's root is ever read: links and ``..`` that lead out of it are problems.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from primia.errors import InvalidInput
from primia.learning import images
from primia.learning.manifest import DatasetManifest, Entry
from primia.learning.patients import MAX_PATIENT_LENGTH, compile_pattern, patient_of
from primia.learning.spec import MAX_CLASSES, check_label

MAX_FILES = 200_000
MAX_CSV_BYTES = 64 << 20
TWO_CLASSES = "at least two classes are needed"
# What operating systems leave in folders, and a DICOM medium's table of contents.
_LEFT_BEHIND = frozenset({"thumbs.db", "desktop.ini", "__macosx", "dicomdir"})

Progress = Callable[[int, int], None]  # (done, of how many)


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one file (or, with an empty path, with the whole data set).

    An ``error`` must be mended or left out; a ``note`` has been dealt with as it says.
    """

    path: str
    reason: str
    severity: Literal["error", "note"] = "error"

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.path else self.reason


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that is said to be an image; not read yet. ``stated``: the patient is the user's word,
    by a column or a pattern, and not what we read from the file or its name."""

    path: str
    label: str
    patient: str
    stated: bool = False


@dataclass(frozen=True)
class Listing:
    """What stands in a folder or CSV, before any file is read."""

    root: Path
    candidates: tuple[Candidate, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """How many images are in colour, and the least and largest (width, height), each by itself."""

    colour: int = 0
    smallest: tuple[int, int] = (0, 0)
    largest: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, seen: Sequence[tuple[bool, tuple[int, int]]]) -> Look:
        """Of (whether it is in colour, its size) each."""
        if not seen:
            return cls()
        widths, heights = zip(*(size for _, size in seen), strict=True)
        return cls(
            sum(colour for colour, _ in seen),
            (min(widths), min(heights)),
            (max(widths), max(heights)),
        )


@dataclass(frozen=True)
class Inspection:
    """The sound images (None where they make no data set), all that is wrong, and what the images
    are like."""

    manifest: DatasetManifest | None
    problems: tuple[Problem, ...]
    look: Look = Look()

    @property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity == "error")


def safe_path(root: Path, relative: str) -> Path:
    """The regular file of a relative POSIX path below the root, links resolved.

    Raises InvalidInput for absolute paths and whatever leads outside, is missing, or is no
    regular file (a pipe would block its reader for ever).
    """
    pure = PurePosixPath(relative)
    if not relative or "\0" in relative or pure.is_absolute() or ".." in pure.parts:
        raise InvalidInput("is not a relative path within the data set's folder")
    try:
        resolved = (root / pure).resolve(strict=True)
    except (OSError, RuntimeError):
        raise InvalidInput("does not exist or cannot be reached") from None
    if not resolved.is_relative_to(root.resolve()):
        raise InvalidInput("is a link that leads out of the data set's folder")
    if not resolved.is_file():
        raise InvalidInput("is not a regular file")
    return resolved


def scan_folder(root: Path, patient_pattern: str | None = None) -> Listing:
    """A folder with one subfolder a class; deeper folders belong to their class."""
    check_folder(root)
    pattern = compile_pattern(patient_pattern) if patient_pattern else None
    candidates: list[Candidate] = []
    problems: list[Problem] = []
    for item in sorted(os.scandir(root), key=lambda found: found.name):
        if left_behind(item.name):
            continue
        if item.is_symlink() and item.is_dir():
            problems.append(Problem(printable(item.name), "is a link to a folder: not followed"))
        elif not item.is_dir():
            reason = "lies beside the class folders and is left out"
            problems.append(Problem(printable(item.name), reason, "note"))
        else:
            _scan_class(root, item.name, pattern, candidates, problems)
        if len(candidates) > MAX_FILES:
            raise InvalidInput(f"A data set has at most {MAX_FILES} files.")
    return Listing(root, tuple(candidates), tuple(problems))


def scan_csv(file: Path, root: Path | None = None, patient_pattern: str | None = None) -> Listing:
    """A CSV (comma or semicolon) with the columns ``path``, ``label`` and, if known, ``patient``;
    paths are relative to ``root``, by default the CSV's folder. Other columns are ignored."""
    root = file.parent if root is None else root
    check_folder(root)
    pattern = compile_pattern(patient_pattern) if patient_pattern else None
    candidates: list[Candidate] = []
    problems: list[Problem] = []
    seen: set[str] = set()
    for line, row in _csv_rows(file):
        path = row["path"].replace("\\", "/")
        reason = _row_fault(path, row["label"], seen)
        if reason:
            problems.append(Problem(printable(path) or f"line {line}", f"{reason} (line {line})"))
            continue
        seen.add(path)
        named = row.get("patient", "")[:MAX_PATIENT_LENGTH]
        patient, stated = named or patient_of(path, pattern), bool(named or pattern)
        candidates.append(Candidate(path, row["label"], patient, stated))
        if len(candidates) > MAX_FILES:
            raise InvalidInput(f"A data set has at most {MAX_FILES} files.")
    return Listing(root, tuple(candidates), tuple(problems))


@dataclass(frozen=True, slots=True)
class Sound:
    """An image that can be used, whether it is in colour, and its (width, height)."""

    entry: Entry
    colour: bool
    size: tuple[int, int]


def validate(listing: Listing) -> Iterator[Sound | Problem]:
    """File by file, in the listing's order."""
    first: dict[str, Candidate] = {}
    for candidate in listing.candidates:
        try:
            data = images.read_bytes(safe_path(listing.root, candidate.path))
            pixels = images.decode(data, images.MIN_SIDE, 3, candidate.path)
            size = images.original_size(data, candidate.path)
        except images.ImageRejected as error:
            yield Problem(candidate.path, error.reason)
            continue
        except InvalidInput as error:
            yield Problem(candidate.path, error.detail)
            continue
        digest = hashlib.sha256(data).hexdigest()
        earlier = first.setdefault(digest, candidate)
        if earlier is candidate:
            patient = patient_in(candidate, data)
            entry = Entry(candidate.path, candidate.label, patient, digest)
            yield Sound(entry, images.is_colour(pixels), size)
        else:
            yield _duplicate(candidate, earlier)


def patient_in(candidate: Candidate, data: bytes) -> str:
    """As the user says; else by a DICOM file's own header, as a digest; else by the name."""
    if candidate.stated or not images.is_dicom(data):
        return candidate.patient
    from primia.learning import dicom  # pydicom: only where there is such a file

    try:
        return dicom.patient(data) or candidate.patient
    except dicom.Damaged:
        return candidate.patient


def inspect(listing: Listing, progress: Progress | None = None) -> Inspection:
    """Every file read and checked. A data set is fit for use if there are no errors."""
    sound: list[Sound] = []
    problems = list(listing.problems)
    for done, found in enumerate(validate(listing), start=1):
        if isinstance(found, Sound):
            sound.append(found)
        else:
            problems.append(found)
        if progress:
            progress(done, len(listing.candidates))
    entries = [each.entry for each in sound]
    whole = list(_whole(listing, entries))
    manifest = None if whole else DatasetManifest.of(entries)
    look = Look.of([(each.colour, each.size) for each in sound])
    return Inspection(manifest, tuple(problems + whole), look)


def _whole(listing: Listing, entries: list[Entry]) -> Iterator[Problem]:
    """What is wrong with the data set as a whole."""
    sound = {entry.label for entry in entries}
    for label in sorted({candidate.label for candidate in listing.candidates} - sound):
        yield Problem("", f"class {label!r} has no image that can be used")
    if len(sound) < 2:
        yield Problem("", f"{TWO_CLASSES}, {len(sound)} found")
    if len(sound) > MAX_CLASSES:
        yield Problem("", f"at most {MAX_CLASSES} classes are possible, {len(sound)} found")


def _duplicate(candidate: Candidate, earlier: Candidate) -> Problem:
    if candidate.label == earlier.label:
        return Problem(candidate.path, f"is the same file as {earlier.path}: left out", "note")
    reason = f"is the same file as {earlier.path}, which has the label {earlier.label!r}"
    return Problem(candidate.path, reason)


def check_folder(root: Path) -> None:
    if not root.is_dir():
        raise InvalidInput(
            f"There is no folder {str(root)!r}.",
            hint="Name a folder with one subfolder a class, or a CSV file.",
        )
    if not os.access(root, os.R_OK | os.X_OK):
        raise InvalidInput(f"The folder {str(root)!r} cannot be read.")


def _scan_class(
    root: Path,
    label: str,
    pattern: re.Pattern[str] | None,
    candidates: list[Candidate],
    problems: list[Problem],
) -> None:
    fault = _label_fault(label)
    if fault:
        problems.append(Problem(printable(label), fault))
        return
    before = len(candidates)
    for path in files_below(root, label, problems):
        if len(candidates) > MAX_FILES:
            return
        if not named_as_image(root, path):
            problems.append(Problem(printable(path), "has no image's suffix: left out", "note"))
        elif not encodable(path):
            problems.append(Problem(printable(path), "has a name that is not UTF-8"))
        else:
            patient = patient_of(path, pattern)
            candidates.append(Candidate(path, label, patient, pattern is not None))
    if len(candidates) == before:
        problems.append(Problem(label, "the class folder holds no images"))


def named_as_image(root: Path, path: str) -> bool:
    """Whether the suffix is an image's; or the file is DICOM, as its first bytes say: what a PACS
    exports is called IM0001 or by numbers with dots."""
    if PurePosixPath(path).suffix.lower() in images.SUFFIXES:
        return True
    try:
        with safe_path(root, path).open("rb") as file:
            return images.is_dicom(file.read(images.DICOM_HEAD))
    except (InvalidInput, OSError, ValueError):
        return False


def files_below(root: Path, label: str, problems: list[Problem]) -> Iterator[str]:
    """Relative paths of the files of a class, sorted; folders that cannot be listed or are links
    become problems."""

    def cannot_list(error: OSError) -> None:
        name = os.path.relpath(error.filename, root)
        problems.append(Problem(printable(name), f"cannot be read ({error.strerror})"))

    for folder, subfolders, files in os.walk(root / label, onerror=cannot_list):
        subfolders[:] = sorted(name for name in subfolders if not left_behind(name))
        here = PurePosixPath(Path(folder).relative_to(root).as_posix())
        for name in subfolders:
            if (Path(folder) / name).is_symlink():
                path = printable(str(here / name))
                problems.append(Problem(path, "is a link to a folder: not followed"))
        yield from (str(here / name) for name in sorted(files) if not left_behind(name))


def _csv_rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, column → stripped text). Raises InvalidInput for what is no such CSV."""
    try:
        if file.stat().st_size > MAX_CSV_BYTES:
            raise InvalidInput(f"{file.name} has more than {MAX_CSV_BYTES >> 20} MiB.")
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidInput(f"{file.name} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{file.name} is not a CSV in UTF-8.") from None
    header = text.split("\n", 1)[0]
    delimiter = ";" if ";" in header and "," not in header else ","
    reader = csv.reader(text.splitlines(), delimiter=delimiter)
    try:
        columns = [name.strip().lower() for name in next(reader, [])]
        _check_columns(file.name, columns)
        for row in reader:
            if any(cell.strip() for cell in row):
                cells = [cell.strip() for cell in row] + [""] * (len(columns) - len(row))
                yield reader.line_num, dict(zip(columns, cells, strict=False))
    except csv.Error as error:
        raise InvalidInput(f"{file.name}, line {reader.line_num}: {error}.") from None


def _check_columns(name: str, columns: list[str]) -> None:
    missing = [wanted for wanted in ("path", "label") if wanted not in columns]
    if missing:
        raise InvalidInput(
            f"{name} has no column {missing[0]!r}.",
            hint="The first line names the columns: path,label or path,label,patient.",
        )


def _row_fault(path: str, label: str, seen: set[str]) -> str | None:
    if not path:
        return "the path is missing"
    if not label:
        return "the label is missing"
    if path in seen:
        return "stands in the list twice"
    return _label_fault(label)


def _label_fault(label: str) -> str | None:
    try:
        check_label(label)
    except ValueError as error:
        return f"the label cannot be used: {error}"
    return None if encodable(label) else "the label is not UTF-8"


def left_behind(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LEFT_BEHIND


def encodable(text: str) -> bool:
    """Names on disk that are not UTF-8 reach us with surrogates, which no JSON can carry."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()[:500]
