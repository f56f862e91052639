"""Maxima of windows as a tree of pairwise maxima: pure index arithmetic on one axis.

Used for separable pooling (rows, then columns) and for the tournament of ``label``. A bundle is
the list of candidates still alive; a level compares pairs of neighbours and carries the odd ones
over. Candidates of one window keep their order, so a tie can go to the first of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Level:
    """The next bundle is max(bundle[left], bundle[right]) followed by bundle[carried]."""

    left: Index
    right: Index
    carried: Index


@dataclass(frozen=True, eq=False)
class Reduction:
    """``first`` gathers the first bundle from the axis, ``last`` the maxima from the last one."""

    first: Index
    levels: tuple[Level, ...]
    last: Index


def window_count(size: int, kernel: int, stride: int, padding: int) -> int:
    """Windows along an axis (floor mode); below one if the kernel does not fit."""
    return (size + 2 * padding - kernel) // stride + 1


@lru_cache(maxsize=256)  # a plan asks for the same few trees again and again; they are read-only
def reduction(size: int, kernel: int, stride: int, padding: int) -> Reduction:
    """The maxima of all windows of an axis. Padding positions are never compared.

    Depth: ceil(log2 kernel) levels.
    """
    starts = [stride * j - padding for j in range(window_count(size, kernel, stride, padding))]
    ranges = [range(max(0, start), min(size, start + kernel)) for start in starts]
    first = [position for window in ranges for position in window]
    windows, base = [], 0
    for window in ranges:
        windows.append(list(range(base, base + len(window))))
        base += len(window)
    levels = []
    while max(len(window) for window in windows) > 1:
        level, windows = _compare(windows)
        levels.append(level)
    return Reduction(_index(first), tuple(levels), _index([window[0] for window in windows]))


def _compare(windows: list[list[int]]) -> tuple[Level, list[list[int]]]:
    pairs = [pair for window in windows for pair in zip(window[::2], window[1::2], strict=False)]
    carried = [window[-1] for window in windows if len(window) % 2]
    level = Level(
        _index([left for left, _ in pairs]), _index([right for _, right in pairs]), _index(carried)
    )
    winners, survivors = iter(range(len(pairs))), iter(range(len(pairs), len(pairs) + len(carried)))
    after = [
        [next(winners) for _ in range(len(window) // 2)]
        + [next(survivors) for _ in range(len(window) % 2)]
        for window in windows
    ]
    return level, after


def _index(values: list[int]) -> Index:
    index = np.array(values, dtype=np.int64)
    index.flags.writeable = False
    return index
