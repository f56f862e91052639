"""Figures of a site as vectors of integers, so that the sums of several sites are exact.

Losses are sums over images in units of 2^-20, at most 2^36 a site (a mean of 4,096 over 2^24
images): every value lies below 2^56, so that the sum over 250 sites stays below 2^64 and wraps
around nowhere (aggregation.integers). Images recognised are in the same units, since a site may
have trained on each of its images more or less than once. Counts are integers as they are, those
of pixels too: below 2^43.

    scores      images, sum of losses, images recognised
    counts      evaluation.counts.Counts, field after field, row after row
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from primia.errors import InvalidInput
from primia.evaluation.counts import BINS, MAX_CLASSES, RELIABILITY_BINS, Counts

Sums = NDArray[np.uint64]
SCORES = 3
UNIT = 2.0**-20
_LARGEST = 2.0**36
_REAL = frozenset({"confidence", "loss", "brier"})


class Contradictory(InvalidInput):
    """Sums that no images can have."""

    code = "contradictory-figures"
    title = "The sums of figures contradict themselves"


@dataclass(frozen=True, slots=True)
class Tally:
    """Images, and the means over them; None where there are no images."""

    samples: int
    loss: float | None
    accuracy: float | None


def of_scores(samples: int, loss: float | None, accuracy: float | None) -> Sums:
    """(SCORES,) of means over ``samples`` images; zeros where a mean is missing or not finite, so
    that a model which diverges at one site spoils that site's figures alone."""
    if loss is None or accuracy is None or not math.isfinite(loss):
        return np.zeros(SCORES, dtype=np.uint64)
    values = (samples, _units(loss * samples), _units(accuracy * samples))
    return np.array(values, dtype=np.uint64)


def scores(total: Sums) -> Tally:
    """Raises Contradictory."""
    samples, loss, right = (int(value) for value in total)
    if right * UNIT > samples:
        raise Contradictory("More images are recognised than there are.")
    if not samples:
        return Tally(0, None, None)
    return Tally(samples, loss * UNIT / samples, right * UNIT / samples)


def counts_length(classes: int) -> int:
    """Values of Counts of so many classes; 0 where there are too many to count."""
    return (
        0 if classes > MAX_CLASSES else sum(math.prod(shape) for shape in _shapes(classes).values())
    )


def of_counts(counts: Counts | None, classes: int) -> Sums:
    """(counts_length,); zeros where there are none."""
    if counts is None:
        return np.zeros(counts_length(classes), dtype=np.uint64)
    parts = [_flat(name, getattr(counts, name)) for name in _shapes(classes)]
    return np.concatenate(parts)


def counts(total: Sums, classes: int) -> Counts | None:
    """None of no images. Raises Contradictory for sums that no images can have."""
    if not total.any():
        return None
    fields: dict[str, Any] = {}
    at = 0
    for name, shape in _shapes(classes).items():
        part = total[at : at + math.prod(shape)].reshape(shape)
        at += part.size
        fields[name] = (part.astype(np.float64) * UNIT if name in _REAL else part).tolist()
    try:
        return Counts.model_validate(fields)
    except ValidationError as error:
        raise Contradictory("The counts of predictions cannot be those of any images.") from error


def _shapes(classes: int) -> dict[str, tuple[int, ...]]:
    """In the order of the vector."""
    return {
        "confusion": (classes, classes),
        "positives": (classes, BINS),
        "negatives": (classes, BINS),
        "taken": (RELIABILITY_BINS,),
        "right": (RELIABILITY_BINS,),
        "confidence": (RELIABILITY_BINS,),
        "loss": (),
        "brier": (),
    }


def _flat(name: str, values: Sequence[Any] | float) -> Sums:
    found = np.asarray(values, dtype=np.float64).ravel()  # counts are below 2^43: exact
    if name in _REAL:
        found = np.array([_units(float(value)) for value in found], dtype=np.float64)
    return found.astype(np.uint64)


def _units(value: float) -> int:
    return round(min(max(value, 0.0), _LARGEST) / UNIT)
