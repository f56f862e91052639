"""Figures from counts. Intervals: Wilson's for shares (statsmodels), Hanley and McNeil's (1982) for
areas under the curve, the delta method for correlations. Heavy libraries: web processes import this
where it is needed."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from statsmodels.stats.proportion import proportion_confint

from primia.evaluation.counts import BINS, Counts
from primia.evaluation.figures import ClassFigures, Figures, Rate, Reliability
from primia.evaluation.metrics import correlation

_NORMAL_95 = 1.959963984540054
# Of a finite difference, as a share of the images.
_STEP = 1e-5


def figures(counts: Counts, labels: tuple[str, ...], *, masks: bool = False) -> Figures:
    """Of the classes named, in the model's order; ``masks``: the counts are of pixels. Their
    intervals would take each pixel for a draw of its own: they have none of any use."""
    found = _figures(counts, labels)
    if not masks:
        return found
    table = np.array(counts.confusion)  # (K, K)
    hits = np.diag(table)
    either = table.sum(axis=0) + table.sum(axis=1) - hits  # TP + FP + FN
    dice = [2 * int(t) / int(t + e) if e else None for t, e in zip(hits, either, strict=True)]
    iou = [int(t) / int(e) if e else None for t, e in zip(hits, either, strict=True)]
    each = zip(found.classes, dice, iou, strict=True)
    return found.model_copy(
        update={
            "classes": tuple(one.model_copy(update={"dice": d, "iou": i}) for one, d, i in each),
            "dice": _mean([value for value in dice[1:] if value is not None]),
            "iou": _mean([value for value in iou[1:] if value is not None]),
        }
    )


def _figures(counts: Counts, labels: tuple[str, ...]) -> Figures:
    confusion = np.array(counts.confusion)  # (K, K)
    images = counts.samples
    each = tuple(_one_class(counts, confusion, number, name) for number, name in enumerate(labels))
    return Figures(
        samples=images,
        loss=counts.loss / images,
        accuracy=_share(int(np.trace(confusion)), images),
        balanced_accuracy=_mean([one.sensitivity.value for one in each if one.sensitivity]),
        mcc=correlation(confusion.astype(np.float64)),
        auc=_mean([one.auc.value for one in each if one.auc]),
        brier=counts.brier / images,
        calibration_error=_calibration_error(counts),
        classes=each,
        confusion=counts.confusion,
        reliability=tuple(
            Reliability(images=n, confidence=total / n, accuracy=right / n)
            for n, right, total in zip(counts.taken, counts.right, counts.confidence, strict=True)
            if n
        ),
    )


def _one_class(
    counts: Counts, confusion: NDArray[np.int64], number: int, name: str
) -> ClassFigures:
    images = int(confusion[number].sum())
    others = int(confusion.sum()) - images
    hit = int(confusion[number, number])
    false = int(confusion[:, number].sum()) - hit
    positives, negatives = np.array(counts.positives[number]), np.array(counts.negatives[number])
    return ClassFigures(
        label=name,
        images=images,
        sensitivity=_share(hit, images) if images else None,
        specificity=_share(others - false, others) if others else None,
        auc=_area(positives, negatives) if images and others else None,
        roc=_roc(positives, negatives) if images and others else (),
    )


def _share(count: int, of: int) -> Rate:
    low, high = proportion_confint(count, of, method="wilson")
    return Rate(value=count / of, interval=(float(low), float(high)))


def _area(positives: NDArray[np.int64], negatives: NDArray[np.int64]) -> Rate:
    """The chance that an image of the class has a higher probability than another; ties, within a
    bin, count half (Mann and Whitney)."""
    n, m = int(positives.sum()), int(negatives.sum())
    below = np.cumsum(negatives) - negatives  # (BINS,)
    area = float((positives * (below + negatives / 2)).sum() / (n * m))
    spread = _hanley_mcneil(area, n, m)
    return Rate(value=area, interval=(max(0.0, area - spread), min(1.0, area + spread)))


def correlation_interval(confusion: NDArray[np.float64]) -> tuple[float, float]:
    """95 % of ``correlation``: the delta method over the cells of a multinomial table; nothing but
    the value itself where a side has one class only."""
    images, value = confusion.sum(), correlation(confusion)
    if min(np.count_nonzero(confusion.sum(axis=side)) for side in (0, 1)) < 2:
        return value, value
    slopes = np.empty_like(confusion)  # per share of the images, (K, K)
    for cell in np.ndindex(confusion.shape):
        step = np.zeros_like(confusion)
        step[cell] = _STEP * images
        above, below = correlation(confusion + step), correlation(confusion - step)
        slopes[cell] = (above - below) / (2 * _STEP)
    shares = confusion / images
    variance = (shares * slopes**2).sum() - (shares * slopes).sum() ** 2
    half = _NORMAL_95 * float(np.sqrt(max(0.0, variance) / images))
    return max(-1.0, value - half), min(1.0, value + half)


def _hanley_mcneil(area: float, positives: int, negatives: int) -> float:
    """Half the width of the interval: Hanley and McNeil (1982), equation 2."""
    first, second = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (
        area * (1 - area)
        + (positives - 1) * (first - area**2)
        + (negatives - 1) * (second - area**2)
    ) / (positives * negatives)
    return _NORMAL_95 * math.sqrt(max(0.0, variance))


def _roc(
    positives: NDArray[np.int64], negatives: NDArray[np.int64]
) -> tuple[tuple[float, float], ...]:
    """One point a bin, from the highest probability down; bins without images are left out."""
    hits = np.cumsum(positives[::-1]) / positives.sum()
    false = np.cumsum(negatives[::-1]) / negatives.sum()
    points = [(0.0, 0.0)]
    for number in range(BINS):
        point = (float(false[number]), float(hits[number]))
        if point != points[-1]:
            points.append(point)
    return tuple(points)


def _calibration_error(counts: Counts) -> float:
    gaps = np.abs(np.array(counts.right) - np.array(counts.confidence))
    return float(gaps.sum() / counts.samples)


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
