"""Shares of a batch that are computed when they are asked for, some images at a time.

All that the dealer knows of P1's shares comes from a seed, at any place of it, and between two
linear layers images do not meet. So the dealer holds none of it: what a batch takes is disk alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from primia.mpc.operations import Shape
from primia.ring import Ring

Function = Callable[..., Ring]


class Deferred:
    """A share of N images, first dimension N, or N times as many flat values. A secret.

    ``size``: values of one image that are held together while it is computed, at least.
    """

    __slots__ = ("_function", "_sources", "size")

    def __init__(self, function: Function, size: int, sources: Sequence[Deferred] = ()) -> None:
        self._function = function
        self._sources = tuple(sources)
        self.size = size

    @classmethod
    def seeded(cls, function: Callable[[int, int], Ring], shape: Shape) -> Deferred:
        """``function``: from the first image and how many to their values, of that shape each."""
        return cls(function, math.prod(shape))

    def part(self, first: int, count: int) -> Ring:
        """Of ``count`` images from ``first`` on; every value on the way is computed once."""
        known: dict[Deferred, Ring] = {}
        waiting = [self]
        while waiting:
            lacking = [source for source in waiting[-1]._sources if source not in known]
            if lacking:
                waiting += lacking
                continue
            share = waiting.pop()
            given: list[Any] = [known[source] for source in share._sources] or [first, count]
            if share not in known:
                known[share] = share._function(*given)
        return known[self]

    def __repr__(self) -> str:
        return "Deferred(<share>)"


V = TypeVar("V", bound=Ring | Deferred)


def lifted(function: Function, values: Sequence[V]) -> V:
    """The function of the values, at once or, of deferred ones, deferred; it treats each image for
    itself."""
    later = [value for value in values if isinstance(value, Deferred)]
    if not later:
        return cast(V, function(*values))
    assert len(later) == len(values), "one side's values are all of one kind"
    return cast(V, Deferred(function, max(value.size for value in later), later))
