"""Figures of predicted masks, all from one table of pixels that adds up over images and sites.

``confusion[i][j]``: pixels of class i taken for j. With TP, FP and FN of a class from it, Dice is
2 TP / (2 TP + FP + FN) and IoU is TP / (TP + FP + FN). Class 0 is the background; means are over
the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def confusion(predicted: NDArray[Any], masks: NDArray[Any], classes: int) -> NDArray[np.int64]:
    """(K, K) of class numbers of the same shape."""
    cells = masks.astype(np.int64).ravel() * classes + predicted.astype(np.int64).ravel()
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def overlaps(table: NDArray[Any]) -> tuple[list[float | None], list[float | None]]:
    """(Dice, IoU) a class; None for a class that is neither there nor predicted."""
    hits = np.diag(table)  # (K,)
    other = table.sum(axis=0) + table.sum(axis=1) - 2 * hits  # FP + FN
    dice = [2 * int(t) / (2 * int(t) + int(o)) if t + o else None
            for t, o in zip(hits, other, strict=True)]  # fmt: skip
    iou = [int(t) / (int(t) + int(o)) if t + o else None
           for t, o in zip(hits, other, strict=True)]  # fmt: skip
    return dice, iou


def mean_foreground(values: list[float | None]) -> float | None:
    """Over the classes behind the first that have a value; None where none has."""
    known = [value for value in values[1:] if value is not None]
    return sum(known) / len(known) if known else None


def mean_dice(table: NDArray[Any]) -> float:
    """1 where nothing but background is there and nothing else is predicted: no pixel is wrong."""
    found = mean_foreground(overlaps(table)[0])
    return 1.0 if found is None else found
