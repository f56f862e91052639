"""What the node's own house says and hears about data sets. Places on disk are never echoed."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from primia.learning.spec import Task
from primia.messages.common import Message, Name
from services.data_node.datasets.domain import BadFiles, Kind, State
from services.data_node.datasets.store import Dataset, DatasetProblem


class SplitShares(Message):
    """Shares of the data set's patients."""

    validation: float = Field(ge=0, le=0.5)
    test: float = Field(ge=0, le=0.5)


class DatasetRequest(Message):
    """A folder with one subfolder a class, or a CSV with the columns path, label and, if known,
    patient; or, for segmentation, a folder with ``images`` and ``masks``: PNG files of the images'
    names and sizes, with class numbers, 0 being the background, or 0 and 255. All lie below a
    folder that the operator has opened for registration."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"name": "chest-2024", "path": "/srv/radiographs/chest-2024"}]
        }
    )

    name: Name
    path: str | None = Field(
        default=None, max_length=4096, description="folder of class folders, or of images and masks"
    )
    csv: str | None = Field(default=None, max_length=4096, description="CSV; paths are relative")
    task: Task = Field(default="classification", description="segmentation: images with masks")
    bad_files: BadFiles = Field(
        default="strict", description="strict: any bad file rejects the data set; skip: left out"
    )
    patient_pattern: str | None = Field(
        default=None,
        max_length=200,
        description="regular expression whose first group in a file's name is the patient",
        examples=["(P[0-9]+)_"],
    )

    split: SplitShares | None = Field(
        default=None,
        description="the one split of all runs on it; default: that of the first one approved",
    )

    @model_validator(mode="after")
    def _one_source(self) -> DatasetRequest:
        if (self.path is None) == (self.csv is None):
            raise ValueError("give either path or csv")
        if self.csv is not None and self.task == "segmentation":
            raise ValueError("csv: images with masks are a folder, not a list")
        return self

    @property
    def kind(self) -> Kind:
        if self.task == "segmentation":
            return "masks"
        return "folder" if self.path else "csv"


class LookView(Message):
    """Training stretches every image to one square; a grey model refuses a data set in colour."""

    colour: int = Field(ge=0, description="images in colour; grey in three channels is grey")
    smallest: tuple[int, int] = Field(description="least width and least height, in pixels")
    largest: tuple[int, int]


class DatasetView(Message):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "chest-2024",
                    "kind": "folder",
                    "state": "ready",
                    "bad_files": "strict",
                    "reason": "",
                    "classes": {"bacterial": 640, "normal": 610, "viral": 600},
                    "images": 1850,
                    "patients": 1212,
                    "errors": 0,
                    "look": {"colour": 0, "smallest": [912, 672], "largest": [2090, 1858]},
                    "created": "2026-05-04T07:30:00Z",
                    "validated": "2026-05-04T07:31:10Z",
                }
            ]
        }
    )

    name: Name
    kind: Kind
    state: State
    bad_files: BadFiles
    reason: str = Field(description="why it was rejected; empty otherwise")
    classes: dict[str, int] = Field(
        description="usable images a class; with masks: whose highest class it is"
    )
    images: int
    patients: int
    errors: int = Field(description="files (or whole classes) that cannot be used")
    look: LookView | None = Field(default=None, description="null before the validation")
    split: SplitShares | None = Field(default=None, description="null before the first run")
    created: datetime
    validated: datetime | None

    @classmethod
    def of(cls, row: Dataset) -> DatasetView:
        fields = (name for name in cls.model_fields if name != "split")
        shares = {"validation": row.validation_fraction, "test": row.test_fraction}
        split = None if None in shares.values() else shares
        return cls.model_validate({**{name: getattr(row, name) for name in fields}, "split": split})


class DatasetList(Message):
    datasets: list[DatasetView]


class ProblemView(Message):
    """``file`` is relative to the data set's folder; empty: the data set as a whole. A note is
    something that has been dealt with, as it says."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": 1,
                    "file": "viral/image7.png",
                    "severity": "error",
                    "reason": "is not an image in a format we read",
                }
            ]
        }
    )

    id: int
    file: str
    severity: Literal["error", "note"]
    reason: str

    @classmethod
    def of(cls, row: DatasetProblem) -> ProblemView:
        return cls.model_validate(
            {"id": row.id, "file": row.file, "severity": row.severity, "reason": row.reason}
        )


class ProblemPage(Message):
    """``next``: give it as ``after`` for the next page; null on the last."""

    problems: list[ProblemView]
    next: int | None
