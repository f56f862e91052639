"""Whether two sets of predictions of the same images differ: McNemar's test, Cohen's κ, and
intervals by the bootstrap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.contingency_tables import mcnemar

from primia.errors import InvalidInput
from primia.prg import Seed, Stream

Labels = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class McNemar:
    """``first_only``, ``second_only``: images that only one of the two recognised; ``p``: of so
    uneven a split by chance (exact binomial below 25 such images, else χ² with continuity)."""

    first_only: int
    second_only: int
    p: float


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % percentile interval."""

    value: float
    low: float
    high: float


def compare_classifiers(first: Labels, second: Labels, truth: Labels) -> McNemar:
    """Predicted classes (N,) of two models against the true ones."""
    _check(first, second, truth)
    right, also = first == truth, second == truth
    table = [
        [int((right & also).sum()), int((right & ~also).sum())],
        [int((~right & also).sum()), int((~right & ~also).sum())],
    ]
    exact = table[0][1] + table[1][0] < 25
    found = mcnemar(table, exact=exact, correction=True)
    return McNemar(table[0][1], table[1][0], float(found.pvalue))


def kappa(first: Labels, second: Labels) -> float:
    """Agreement of two raters beyond chance; 1 where both always say the same one class."""
    _check(first, second)
    if np.array_equal(first, second):
        return 1.0
    return float(cohen_kappa_score(first, second))


def bootstrap(
    figure: Callable[[NDArray[np.int64]], float], images: int, *, times: int = 1000, seed: int = 0
) -> Interval:
    """``figure`` of row numbers (N,), over samples drawn with replacement; draws on which it is
    not defined (NaN) are left out."""
    if images < 2:
        raise InvalidInput(f"An interval needs at least two images, not {images}.")
    stream = Stream(Seed(seed.to_bytes(16, "little")), "bootstrap")
    words = stream.words((times, images), bits=32).astype(np.uint64)
    rows = (words * images >> np.uint64(32)).astype(np.int64)  # (times, N), bias below 2^-32 N
    values = np.array([figure(row) for row in rows])
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return Interval(figure(np.arange(images)), float(low), float(high))


def _check(*labels: Labels) -> None:
    if len({each.shape for each in labels}) != 1 or labels[0].ndim != 1 or not len(labels[0]):
        shapes = ", ".join(str(each.shape) for each in labels)
        raise InvalidInput(f"Labels of shapes {shapes} do not compare.")
