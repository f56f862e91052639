"""Normal noise for differential privacy, from the secure generator and on the integers.

Noise computed in floating point leaves holes: which numbers can come out depends on what they are
added to, and tells of it (Mironov, On Significance of the Least Significant Bits for Differential
Privacy, CCS 2012). Here noise is rounded to integers and added to integers. For an integer x,
x + round(N) = round(x + N): what is released is a function of the normal mechanism's output, and as
private. Each uniform has 53 bits, so with a deviation of up to 2^40 every integer near zero still
stands for thousands of them; the tails end at 8.6 deviations, beyond which a normal lies with a
probability of 2^-53.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from primia.prg import Stream

LARGEST_DEVIATION = float(1 << 40)
_CHUNK = 1 << 17
_UNIT = 2.0**-53


def rounded_normals(stream: Stream, count: int, deviation: float) -> NDArray[np.int64]:
    """``count`` integers round(N), N normal with mean 0 and this deviation; 8 stream bytes each.

    By Box and Muller (1958): r = √(-2 ln u), angle 2 π v, for u in (0, 1] and v in [0, 1).
    """
    if not 0 <= deviation <= LARGEST_DEVIATION:
        raise ValueError(f"a deviation of {deviation:.3g} is not supported")
    out = np.empty(count, dtype=np.int64)
    for start, pairs in _chunks(count):
        u, v = _uniforms(stream, pairs), _uniforms(stream, pairs)  # (pairs,) each
        radius = deviation * np.sqrt(-2 * np.log(1 - u))
        angle = 2 * math.pi * v
        both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])  # (2 pairs,)
        part = out[start : start + 2 * pairs]
        np.copyto(part, np.rint(both[: len(part)]), casting="unsafe")
    return out


def _uniforms(stream: Stream, count: int) -> NDArray[np.float64]:
    """Multiples of 2^-53 in [0, 1)."""
    words = np.empty(count, dtype="<u8")
    stream.fill(words.view(np.uint8))
    return (words >> np.uint64(11)).astype(np.float64) * _UNIT


def _chunks(count: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, 2 * _CHUNK):
        yield start, (min(2 * _CHUNK, count - start) + 1) // 2
