"""What counts say: accuracy, sensitivity, specificity, areas under the curve, MCC, calibration.

Figures that the images cannot give (the area under the curve of a class without images) are None,
never a stand-in. Intervals are 95 %. How they are computed: measuring.py.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

Interval = tuple[float, float]


class Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rate(Checked):
    """A share or an area, with its interval."""

    value: float
    interval: Interval


class ClassFigures(Checked):
    """One class against the rest; ``roc``: (1 - specificity, sensitivity), (0, 0) to (1, 1).
    ``dice``, ``iou``: of masks alone, None for a class that is neither there nor predicted."""

    label: str
    images: int
    sensitivity: Rate | None
    specificity: Rate | None
    auc: Rate | None
    roc: tuple[tuple[float, float], ...]
    dice: float | None = None
    iou: float | None = None


class Reliability(Checked):
    """The images whose highest probability lies in one bin."""

    images: int
    confidence: float
    accuracy: float


class Figures(Checked):
    """``loss``: the mean cross-entropy, of masks too (trained with the Dice loss beside it).
    ``auc`` and ``balanced_accuracy``: means over the classes; ``calibration_error``: expected,
    over 15 bins (Guo et al., 2017); ``brier``: over all classes, 0 to 2. Of masks the samples are
    pixels, and ``dice`` and ``iou`` the means over the classes but the background, the first."""

    samples: int
    loss: float
    accuracy: Rate
    balanced_accuracy: float | None
    mcc: float
    auc: float | None
    brier: float
    calibration_error: float
    classes: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]
    reliability: tuple[Reliability, ...]
    dice: float | None = None
    iou: float | None = None
