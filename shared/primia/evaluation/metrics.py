"""How good a model is, and how close two sets of predictions are. Without torch.

Figures that a data set cannot give (the area under the curve of a class without images) are None,
never a stand-in.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, log_loss, roc_auc_score

from primia.errors import InvalidInput

Logits = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class ClassMetrics:
    """One class against the rest.

    ``sensitivity``: the share of its images that were recognised; ``specificity``: the share of
    the others that were not taken for it; ``auc``: area under the ROC curve of its probability.
    """

    label: str
    images: int
    sensitivity: float | None
    specificity: float | None
    auc: float | None


@dataclass(frozen=True)
class Metrics:
    """``confusion[i][j]``: images of class i taken for class j; ``auc``: mean over the classes;
    ``mcc``: Matthews' correlation (Gorodkin's for several classes), 0 for a guess, at most 1."""

    samples: int
    loss: float
    accuracy: float
    balanced_accuracy: float | None
    mcc: float
    auc: float | None
    classes: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Agreement:
    """Two predictions of the same images; differences of logits are None where only labels are
    known. ``differing``: the numbers of the images with different labels."""

    samples: int
    same: int
    largest_difference: float | None
    mean_difference: float | None
    differing: tuple[int, ...]

    @property
    def share(self) -> float:
        return self.same / self.samples


def measure(logits: Logits, labels: Labels, classes: tuple[str, ...]) -> Metrics:
    """Logits (N, K) against class numbers (N,), with the names of the K classes."""
    _check(logits, labels, len(classes))
    probabilities = _softmax(logits)  # (N, K)
    predicted = logits.argmax(axis=1)  # (N,)
    numbers = np.arange(len(classes))
    confusion = confusion_matrix(labels, predicted, labels=numbers)  # (K, K)
    each = tuple(
        _one_class(name, confusion, labels == number, probabilities[:, number], number)
        for number, name in enumerate(classes)
    )
    return Metrics(
        samples=len(labels),
        loss=float(log_loss(labels, probabilities, labels=numbers)),
        accuracy=float(np.trace(confusion) / len(labels)),
        balanced_accuracy=_mean([one.sensitivity for one in each]),
        mcc=correlation(confusion.astype(np.float64)),
        auc=_mean([one.auc for one in each]),
        classes=each,
        confusion=tuple(tuple(int(cell) for cell in row) for row in confusion),
    )


def compare(plain: Logits, encrypted: Logits) -> Agreement:
    """Logits (N, K) of the same images, without and with encryption."""
    if plain.shape != encrypted.shape or plain.ndim != 2 or plain.size == 0:
        raise InvalidInput(f"Logits of shape {plain.shape} and {encrypted.shape} do not compare.")
    difference = np.abs(plain.astype(np.float64) - encrypted.astype(np.float64))  # (N, K)
    labels = compare_labels(plain.argmax(axis=1), encrypted.argmax(axis=1))
    return Agreement(
        labels.samples,
        labels.same,
        float(difference.max()),
        float(difference.mean()),
        labels.differing,
    )


def compare_labels(plain: Labels, encrypted: Labels) -> Agreement:
    """Class numbers (N,) of the same images, without and with encryption."""
    if plain.shape != encrypted.shape or plain.ndim != 1 or plain.size == 0:
        raise InvalidInput(f"Labels of shape {plain.shape} and {encrypted.shape} do not compare.")
    differing = np.flatnonzero(plain != encrypted)
    same = len(plain) - len(differing)
    return Agreement(len(plain), same, None, None, tuple(int(number) for number in differing))


def _check(logits: Logits, labels: Labels, classes: int) -> None:
    if logits.ndim != 2 or logits.shape[1] != classes or labels.shape != logits.shape[:1]:
        raise InvalidInput(
            f"Logits of shape {logits.shape} and labels of shape {labels.shape} are not one row "
            f"an image and one column for each of {classes} classes."
        )
    if not len(labels):
        raise InvalidInput("There are no images to measure on.")
    if not np.isfinite(logits).all():
        raise InvalidInput("The logits are not all finite.")
    if labels.min() < 0 or labels.max() >= classes:
        raise InvalidInput(f"Labels are class numbers 0 to {classes - 1}.")


def _softmax(logits: Logits) -> NDArray[np.float64]:
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))  # (N, K)
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def _one_class(
    name: str,
    confusion: NDArray[np.int64],
    belongs: NDArray[np.bool_],
    probability: NDArray[np.float64],
    number: int,
) -> ClassMetrics:
    images, others = int(belongs.sum()), int((~belongs).sum())
    hit = int(confusion[number, number])
    false = int(confusion[:, number].sum()) - hit
    return ClassMetrics(
        label=name,
        images=images,
        sensitivity=hit / images if images else None,
        specificity=1 - false / others if others else None,
        auc=float(roc_auc_score(belongs, probability)) if images and others else None,
    )


def correlation(confusion: NDArray[np.float64]) -> float:
    """Matthews' correlation for several classes: Gorodkin (2004), equation 8; 0 where a side has
    one class only (scikit-learn's function warns about that case on every call)."""
    true, taken, total = confusion.sum(axis=1), confusion.sum(axis=0), confusion.sum()
    covariance = np.trace(confusion) * total - true @ taken
    variances = (total**2 - taken @ taken) * (total**2 - true @ true)
    return float(covariance / np.sqrt(variances)) if variances else 0.0


def _mean(values: list[float | None]) -> float | None:
    """Over the classes that have images; None if none has a value."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
