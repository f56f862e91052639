"""AES-128 in tables, for machines whose instructions do not know it: public constants only.

FIPS 197. A block is four columns, 32-bit words, least significant byte first. A round is four
lookups a column in one table (Daemen, Rijmen: The Design of Rijndael, 4.2), which joins SubBytes
and MixColumns; the tables of the other rows are rotations of the first row's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from primia.fss.prf import PUBLIC_KEY

ROUNDS = 10
_POLYNOMIAL = 0x11B


def _double(x: int) -> int:
    return (x << 1) ^ (_POLYNOMIAL if x & 0x80 else 0)


def substitution() -> list[int]:
    """SubBytes: the inverse in GF(2^8), then an affine map (FIPS 197, 5.1.1)."""
    powers = [1]  # of 3, which generates the field's units
    for _ in range(254):
        powers.append(powers[-1] ^ _double(powers[-1]))
    logarithm = {power: exponent for exponent, power in enumerate(powers)}
    inverses = [0] + [powers[-logarithm[x] % 255] for x in range(1, 256)]
    return [
        x ^ _turned(x, 1) ^ _turned(x, 2) ^ _turned(x, 3) ^ _turned(x, 4) ^ 0x63 for x in inverses
    ]


def _turned(x: int, places: int) -> int:
    return (x << places | x >> (8 - places)) & 0xFF


def table() -> NDArray[np.uint32]:
    """What the first row's byte x adds to its column: bytes 2 S(x), S(x), S(x), 3 S(x); (256,)."""
    rows = [bytes((_double(s), s, s, _double(s) ^ s)) for s in substitution()]
    return np.frombuffer(b"".join(rows), dtype="<u4").copy()


def round_keys() -> NDArray[np.uint32]:
    """The public key's schedule (FIPS 197, 5.2): four columns a round, (44,)."""
    substituted, constant = substitution(), 1
    words = [PUBLIC_KEY[at : at + 4] for at in range(0, 16, 4)]
    for i in range(4, 4 * (ROUNDS + 1)):
        word = words[-1]
        if i % 4 == 0:
            word = bytes(substituted[x] for x in word[1:] + word[:1])
            word = bytes((word[0] ^ constant, *word[1:]))
            constant = _double(constant)
        words.append(bytes(a ^ b for a, b in zip(words[-4], word, strict=True)))
    return np.frombuffer(b"".join(words), dtype="<u4").copy()
