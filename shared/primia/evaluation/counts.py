"""What a site says of a model: counts that add up over sites, never scores of images.

A site sends no score of an image: it counts how its images fall into bins of the predicted
probability. Sums of counts over sites are the counts of all images together, so that overall
figures are those of the pooled data. Areas under the curve are exact up to ties within a bin.
For segmentation all of this is of pixels, where it says images.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

BINS = 100  # of the probability of a class
RELIABILITY_BINS = 15  # of the probability of the predicted class (Guo et al., 2017)
MAX_CLASSES = 32  # beyond, matrices are too large to send

# Of pixels, for segmentation: 200,000 images of 512 x 512 are below 2^36 a site, and 100 sites'
# below 2^43. Exact as a float and in JSON.
Count = Annotated[int, Field(ge=0, le=2**43)]
Row = tuple[Count, ...]
Sum = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]


class Counts(BaseModel):
    """``confusion[i][j]``: images of class i taken for j; ``positives[k][b]``: images of class k
    whose probability of k lies in bin b, ``negatives[k][b]``: images of other classes;
    ``taken[b]``, ``right[b]``, ``confidence[b]``: images whose highest probability lies in bin b,
    how many of them were recognised, and the sum of those probabilities; ``loss`` and ``brier``:
    sums over the images."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    confusion: tuple[Row, ...] = Field(min_length=2, max_length=MAX_CLASSES)
    positives: tuple[Row, ...]
    negatives: tuple[Row, ...]
    taken: Row
    right: Row
    confidence: tuple[Sum, ...]
    loss: Sum
    brier: Sum

    @model_validator(mode="after")
    def _shapes(self) -> Self:
        classes = len(self.confusion)
        bins = [self.positives, self.negatives]
        if any(len(row) != classes for row in self.confusion):
            raise ValueError("the confusion matrix is not square")
        if any(len(part) != classes or {len(row) for row in part} != {BINS} for part in bins):
            raise ValueError(f"there are {BINS} bins a class")
        if {len(self.taken), len(self.right), len(self.confidence)} != {RELIABILITY_BINS}:
            raise ValueError(f"there are {RELIABILITY_BINS} bins of reliability")
        if not sum(map(sum, self.confusion)) == sum(self.taken) == self._each():
            raise ValueError("the counts are not of the same images")
        return self

    def _each(self) -> int:
        """Images by the histograms; -1 where those of two classes differ."""
        totals = {sum(p) + sum(n) for p, n in zip(self.positives, self.negatives, strict=True)}
        return totals.pop() if len(totals) == 1 else -1

    @property
    def samples(self) -> int:
        return sum(self.taken)


def count(logits: NDArray[Any], labels: NDArray[Any]) -> Counts | None:
    """Logits (N, K), class numbers (N,); None without images or with too many classes."""
    images, classes = logits.shape
    if not images or classes > MAX_CLASSES or not np.isfinite(logits).all():
        return None
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))  # (N, K)
    chances = np.exp(logs)
    predicted = chances.argmax(axis=1)  # (N,)
    truth = np.eye(classes)[labels]  # (N, K)
    places = np.minimum((chances * BINS).astype(int), BINS - 1)  # (N, K)
    top = chances.max(axis=1)
    reliability = np.minimum((top * RELIABILITY_BINS).astype(int), RELIABILITY_BINS - 1)
    right = predicted == labels
    cells = np.bincount(labels * classes + predicted, minlength=classes**2)
    return Counts(
        confusion=_rows(cells.reshape(classes, classes)),
        positives=_rows(_histogram(places[labels == k, k]) for k in range(classes)),
        negatives=_rows(_histogram(places[labels != k, k]) for k in range(classes)),
        taken=_row(np.bincount(reliability, minlength=RELIABILITY_BINS)),
        right=_row(np.bincount(reliability[right], minlength=RELIABILITY_BINS)),
        confidence=tuple(
            float(value) for value in np.bincount(reliability, top, minlength=RELIABILITY_BINS)
        ),
        loss=float(-logs[np.arange(images), labels].sum()),
        brier=float(((chances - truth) ** 2).sum()),
    )


def total(parts: Iterable[Counts]) -> Counts | None:
    """The counts of all images together; None without any. Parts must be of the same classes."""
    found = list(parts)
    if not found:
        return None
    summed: dict[str, Any] = {}
    for name in Counts.model_fields:
        values = np.sum([np.asarray(getattr(part, name)) for part in found], axis=0)
        summed[name] = values.tolist()
    return Counts.model_validate(summed)


def _histogram(bins: NDArray[Any]) -> NDArray[Any]:
    return np.bincount(bins, minlength=BINS)


def _row(values: NDArray[Any]) -> Row:
    return tuple(int(value) for value in values)


def _rows(values: Iterable[NDArray[Any]]) -> tuple[Row, ...]:
    return tuple(_row(row) for row in values)
