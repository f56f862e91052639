"""The odd ring Z_(2^64 - 1), in uint64: 2^64 counts as 1, so a carry out of a word comes back in.

In an odd ring MSB(a) = LSB(2a) (Wagh, Gupta, Chandran: SecureNN, section 3.5). Elements are kept
in [0, 2^64 - 2].
"""

from __future__ import annotations

import numpy as np

from primia.mpc.securenn import ring64
from primia.mpc.securenn.ring64 import Words
from primia.prg import Stream

MODULUS = np.uint64(2**64 - 1)


def reduce(a: Words) -> Words:
    """Any word as an element: 2^64 - 1 is 0."""
    return np.where(a == MODULUS, np.uint64(0), a)


def add(a: Words, b: Words) -> Words:
    total = a + b
    total += total < a
    return reduce(total)


def subtract(a: Words, b: Words) -> Words:
    difference = a - b
    difference -= a < b
    return difference


def uniform(stream: Stream, shape: int | tuple[int, ...]) -> Words:
    """Uniform up to 2^-64: the one word too many counts as 0."""
    return reduce(ring64.uniform(stream, shape))
