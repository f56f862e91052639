"""Deals that nobody waits for stand back, between two blocks of keys, for those that somebody does.

The queue is first come, first served: behind a stock that is being filled an image would wait for
all of it. Whoever works on the stock looks up now and then, and does first what is more urgent.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from primia.fss.geometry import KeyShape
from primia.fss.kernel import Bits, Generator, KeyBlock, Numbers, Words

_SECONDS = 0.2


class StandingBack:
    """A generator that calls ``look_up`` before its first block, and from then on between blocks,
    every 0.2 s at most."""

    def __init__(
        self, generator: Generator, look_up: Callable[[], None], seconds: float = _SECONDS
    ) -> None:
        self._generator = generator
        self._look_up = look_up
        self._seconds = seconds
        self._next = time.monotonic()

    def generate(
        self,
        shape: KeyShape,
        alpha: Numbers,
        constant: Bits,
        roots: tuple[Words, Words],
        out: KeyBlock,
    ) -> None:
        if time.monotonic() >= self._next:
            self._look_up()
            self._next = time.monotonic() + self._seconds
        self._generator.generate(shape, alpha, constant, roots, out)
