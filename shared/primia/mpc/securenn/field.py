"""The field Z_67 of SecureNN's bit shares: one byte an element, 64-bit words as bits.

67 is the smallest prime above 64 + 2: a sum of 64 bits and 2 does not wrap (section 3.3). Bits lie
bit-major, (64, n), the least significant first, so that a step works on n neighbours at once.
Sums stay in bytes: x - 67 of an x < 67 wraps to a large byte, and the lesser of both is x mod 67.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from primia.mpc.securenn.ring64 import Words
from primia.prg import Stream

PRIME = 67
WIDTH = 64

Field = NDArray[np.uint8]

_P = np.uint8(PRIME)
_INVALID = np.uint16(0xFFFF)


def reduce(x: Field) -> Field:
    """In place, x mod 67 of bytes below 2 * 67."""
    result: Field = np.minimum(x, x - _P, out=x)
    return result


def add(a: Field, b: Field) -> Field:
    return reduce(a + b)


def subtract(a: Field, b: Field) -> Field:
    """In bytes below 67."""
    return reduce(a + (_P - b))


def multiply(a: Field, b: Field) -> Field:
    """a b mod 67. The quotient of a product below 66 * 67 is (15 ab) >> 10, or up to 2 more."""
    product = a.astype(np.uint16)
    product *= b
    quotient = product * np.uint16(15)
    quotient >>= np.uint16(10)
    quotient *= np.uint16(PRIME)
    product -= quotient
    return reduce(reduce(product.astype(np.uint8)))


def bits_of(values: Words, width: int = WIDTH) -> Field:
    """(n,) -> (width, n), each 0 or 1."""
    octets = np.ascontiguousarray(values.astype("<u8", copy=False).view(np.uint8).reshape(-1, 8).T)
    out = np.empty((width, len(values)), np.uint8)
    for i in range(width):
        np.right_shift(octets[i // 8], np.uint8(i % 8), out=out[i])
    out &= np.uint8(1)
    return out


def uniform(stream: Stream, shape: int | tuple[int, ...]) -> Field:
    """Exactly uniform elements of Z_67."""
    return _digits(stream, shape, _pairs(PRIME, 0))


def uniform_nonzero(stream: Stream, shape: int | tuple[int, ...]) -> Field:
    """Exactly uniform elements of Z_67 without 0."""
    return _digits(stream, shape, _pairs(PRIME - 1, 1))


@lru_cache(maxsize=2)
def _pairs(size: int, least: int) -> NDArray[np.uint16]:
    """16-bit word -> two digits of ``least`` to ``least + size - 1`` in its bytes, or invalid.

    Words from the greatest multiple of size^2 on are invalid, so the digits are exactly uniform.
    """
    words = np.arange(1 << 16, dtype=np.uint32)
    low, high = words % size + least, words // size % size + least
    table = (low | high << 8).astype("<u2")
    table[(1 << 16) // size**2 * size**2 :] = _INVALID
    table.flags.writeable = False
    return table


def _digits(stream: Stream, shape: int | tuple[int, ...], table: NDArray[np.uint16]) -> Field:
    """Rejection sampling; how much of the stream is used depends on the stream alone."""
    count = math.prod(np.atleast_1d(shape).tolist())
    wanted = (count + 1) // 2
    found = np.empty(wanted, dtype="<u2")
    have = 0
    while have < wanted:
        raw = np.empty((wanted - have) * 17 // 16 + 64, dtype="<u2")
        stream.fill(raw.view(np.uint8))
        pairs = table[raw]
        pairs = pairs[pairs != _INVALID][: wanted - have]
        found[have : have + len(pairs)] = pairs
        have += len(pairs)
    return found.view(np.uint8)[:count].reshape(shape)
