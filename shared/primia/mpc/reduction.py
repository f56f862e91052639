"""Maxima of windows as a tree of maxima of two or three: pure index arithmetic on one axis.

Used for separable pooling (rows, then columns) and for the tournament of ``label``. A bundle is
the list of candidates still alive; a level compares neighbours and carries those that are left
alone. Candidates of one window keep their order, so a tie can go to the first of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Level:
    """The next bundle is the maxima of bundle[c], c in ``candidates``, then bundle[carried].

    ``candidates``: two or three indices, the first before the second before the third.
    """

    candidates: tuple[Index, ...]
    carried: Index

    @property
    def count(self) -> int:
        """Maxima of this level."""
        return len(self.candidates[0])

    @property
    def ways(self) -> int:
        return len(self.candidates)


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
def reduction(
    size: int, kernel: int, stride: int, padding: int, ways: int = 2, whole: bool = False
) -> Reduction:
    """The maxima of all windows of an axis. Padding positions are never compared.

    ``ways``: candidates that a level compares at most. Depth: ceil(log_ways kernel) levels.
    ``whole``: the last level carries nothing; a candidate left alone is compared with itself.
    """
    starts = [stride * j - padding for j in range(window_count(size, kernel, stride, padding))]
    ranges = [range(max(0, start), min(size, start + kernel)) for start in starts]
    first = [position for window in ranges for position in window]
    windows, base = [], 0
    for window in ranges:
        windows.append(list(range(base, base + len(window))))
        base += len(window)
    levels = []
    while (largest := max(len(window) for window in windows)) > 1:
        together = _together(largest, ways)
        level, windows = _compare(windows, together, whole and largest <= together)
        levels.append(level)
    return Reduction(_index(first), tuple(levels), _index([window[0] for window in windows]))


def _together(largest: int, ways: int) -> int:
    """How many candidates to compare at once: two, which is less work, where the depth allows."""
    behind = 1  # candidates that the levels behind this one can take
    while ways * behind < largest:
        behind *= ways
    return 2 if -(-largest // 2) <= behind else ways


def _compare(
    windows: list[list[int]], together: int, whole: bool = False
) -> tuple[Level, list[list[int]]]:
    """A window's last group may lack candidates: its last one then stands in for them."""
    groups: list[list[int]] = []
    carried: list[int] = []
    sizes = []
    for window in windows:
        parts = [window[at : at + together] for at in range(0, len(window), together)]
        alone = parts.pop() if len(parts[-1]) == 1 and not whole else []
        groups += [part + part[-1:] * (together - len(part)) for part in parts]
        carried += alone
        sizes.append((len(parts), len(alone)))
    winners, survivors = (
        iter(range(len(groups))),
        iter(range(len(groups), len(groups) + len(carried))),
    )
    after = [[*islice(winners, won), *islice(survivors, kept)] for won, kept in sizes]
    candidates = tuple(_index([group[place] for group in groups]) for place in range(together))
    return Level(candidates, _index(carried)), after


def _index(values: list[int]) -> Index:
    index = np.array(values, dtype=np.int64)
    index.flags.writeable = False
    return index
