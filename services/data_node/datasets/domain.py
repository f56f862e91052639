"""The rules of registered data sets: states, allowed places, which of them fits a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from primia.errors import Conflict, Forbidden, InvalidInput
from primia.learning import spec
from primia.learning.datasets import TWO_CLASSES, Inspection, Problem
from primia.learning.spec import Task

State = Literal["validating", "ready", "rejected"]
Kind = Literal["folder", "csv", "masks"]
BadFiles = Literal["strict", "skip"]

# A rejected data set is registered again under its name once the files are mended.
TRANSITIONS: Mapping[State, frozenset[State]] = {
    "validating": frozenset({"ready", "rejected"}),
    "ready": frozenset(),
    "rejected": frozenset({"validating"}),
}


def move(present: State, wanted: State) -> State:
    if wanted not in TRANSITIONS[present]:
        raise Conflict(f"A data set that is {present} cannot become {wanted}.")
    return wanted


def allowed_place(given: str, roots: Sequence[Path]) -> Path:
    """The place with links resolved, if it lies in one of the folders that may be registered.

    Raises Forbidden for a place outside (which says nothing about whether it exists), InvalidInput
    for a relative or missing one.
    """
    path = Path(given)
    if "\x00" in given or not path.is_absolute():
        raise InvalidInput("The path of a data set is absolute.", hint="Begin it with a slash.")
    place = path.resolve()
    if not any(place.is_relative_to(root.resolve()) for root in roots):
        raise Forbidden(
            "The path lies outside the folders that may be registered.",
            hint="Move the images there, or have the operator extend PRIMIA_DATA_ROOTS.",
        )
    if not place.exists():
        raise InvalidInput("There is nothing at that path.", hint="Check its spelling.")
    return place


def verdict(found: Inspection, kind: Kind, bad_files: BadFiles) -> str | None:
    """Why a data set is rejected, or None: it is ready.

    Bad files may be left out on request; a class without images, or whatever else concerns more
    than one file, always rejects.
    """
    whole = [each for each in found.errors if not each.path or _is_class(each, kind)]
    if whole:
        return "; ".join(str(each) for each in whole[:3]) + "."
    if found.errors and bad_files == "strict":
        count = len(found.errors)
        return f"{count} {'file' if count == 1 else 'files'} cannot be used: see its problems."
    return None if found.manifest else "It holds no usable images."


def outward(errors: Sequence[Problem], kind: Kind) -> str:
    """Why a data set was rejected, as the model owner may know it: what files and folders are
    called, and so patients, stays here."""
    files = sum(bool(each.path) and not _is_class(each, kind) for each in errors)
    parts = [f"{files} of its files cannot be used"] if files else []
    if any(each.reason.startswith(TWO_CLASSES) for each in errors):
        parts.append("it has fewer than two classes with images that can be used")
    return " and ".join(parts) or "it cannot be used as a whole"


def _is_class(problem: Problem, kind: Kind) -> bool:
    """A problem of a class folder, not of a file in one."""
    return kind == "folder" and "/" not in problem.path


class SplitOtherwise(Conflict):
    """Images that test one run would be trained on in another."""

    code = "split-otherwise"
    title = "This site splits the data set into other parts"


@dataclass(frozen=True, slots=True)
class Split:
    """Shares of a data set's patients whose images validate and test; the rest is trained on."""

    validation: float
    test: float

    def check(self, name: str, wanted: Split) -> None:
        """Raises SplitOtherwise."""
        if self != wanted:
            raise SplitOtherwise(
                f"{name} is split into {self.validation:g} for validation and {self.test:g} for "
                f"tests; the run asks for {wanted.validation:g} and {wanted.test:g}. Images that "
                "validate or test in one run would be trained on in another.",
                hint="Refuse the run; or remove the data set and register it with that split; or "
                "let the operator set PRIMIA_OTHER_SPLITS.",
            )


def task_of(kind: str) -> Task:
    """What a data set is for."""
    return "segmentation" if kind == "masks" else "classification"


def misfit(kind: str, counts: Mapping[str, int], architecture: str, classes: Sequence[str]) -> str:
    """Why a data set does not fit a model; empty: it does. The classes of masks are numbers, and
    need not all occur at every site."""
    own, wanted = task_of(kind), spec.task_of(architecture)
    if own != wanted:
        return f"it is for {own} and the model for {wanted}"
    if own == "classification":
        return mismatch(counts, classes) or ""
    highest = len(counts) - 1
    if highest < len(classes):
        return ""
    return f"its masks have classes up to {highest}, and the model's end at {len(classes) - 1}"


def colour_lost(colour: int, images: int, channels: int) -> str:
    """Why a model of so many channels does not see what these images show; empty: it does. A few
    images in colour among grey ones are made grey; grey ones are repeated for three channels."""
    if channels == 1 and 2 * colour > images:
        return f"{colour} of its {images} images are in colour, and the model takes grey ones"
    return ""


def mismatch(counts: Mapping[str, int], classes: Iterable[str]) -> str | None:
    """How a data set's classes differ from a model's, or None."""
    wanted = set(classes)
    missing, extra = sorted(wanted - set(counts)), sorted(set(counts) - wanted)
    parts = [f"it lacks {', '.join(missing)}"] if missing else []
    parts += [f"the model does not know {', '.join(extra)}"] if extra else []
    return " and ".join(parts) or None
