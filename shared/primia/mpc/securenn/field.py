"""The field Z_67 of SecureNN's bit shares: one byte an element, 64-bit words as bits.

67 is the smallest prime above 64 + 2: a sum of 64 bits and 2 does not wrap (section 3.3). Bits lie
bit-major, (64, n), the least significant first, so that a step works on n neighbours at once.
Sums stay in bytes: x - 67 of an x < 67 wraps to a large byte, and the lesser of both is x mod 67.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from primia.mpc.securenn import native
from primia.mpc.securenn.ring64 import Words
from primia.prg import Stream

PRIME = 67
WIDTH = 64

Field = NDArray[np.uint8]

_P = np.uint8(PRIME)


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
    """a b mod 67."""
    product = np.multiply(a, b, dtype=np.uint16)
    quotient = product // np.uint16(PRIME)
    quotient *= np.uint16(PRIME)
    product -= quotient
    return product.astype(np.uint8)


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
    return _digits(stream, shape, PRIME)


def uniform_nonzero(stream: Stream, shape: int | tuple[int, ...]) -> Field:
    """Exactly uniform elements of Z_67 without 0."""
    digits = _digits(stream, shape, PRIME - 1)
    digits += np.uint8(1)
    return digits


def _digits(stream: Stream, shape: int | tuple[int, ...], size: int) -> Field:
    """Two digits below ``size`` from each 16-bit word of the stream. Words from the greatest
    multiple of size^2 on are drawn again, so the digits are exactly uniform, and how much of the
    stream is used depends on the stream alone."""
    count = math.prod(np.atleast_1d(shape).tolist())
    words = np.empty((count + 1) // 2, dtype="<u2")
    stream.fill(words.view(np.uint8))
    limit = (1 << 16) // size**2 * size**2
    wrong = np.flatnonzero(words >= limit)
    while len(wrong):
        again = np.empty(len(wrong), dtype="<u2")
        stream.fill(again.view(np.uint8))
        words[wrong] = again
        wrong = wrong[again >= limit]
    if native.available():
        native.split_digits(words, size)
    else:
        _split_digits(words, np.uint16(size))
    return words.view(np.uint8)[:count].reshape(shape)


def _split_digits(words: NDArray[np.uint16], base: np.uint16) -> None:
    """As ``native.split_digits``."""
    first = words // base
    second = first // base
    words -= first * base  # the low digit
    first -= second * base  # the high one
    first <<= np.uint16(8)
    words |= first
