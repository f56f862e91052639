"""Shamir's secret sharing (CACM 1979) over GF(2^256 + 297), for secrets of up to 32 bytes.

Why this field: 2^256 + 297 is the smallest prime above 2^256, so every 32-byte string is an
element as it stands, an X25519 private key needs no splitting, a share is 33 bytes and Python's
integers do the arithmetic. A wrong set of shares almost surely combines to a value that is no
secret of the stated size, or (for 32 bytes) to a wrong one: the caller checks the secret against a
public key or a commitment.

Any ``threshold`` shares give the secret, fewer are independent of it. Shares are secret: they
print no content.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence

from primia.codec import Reader
from primia.errors import MalformedMessage
from primia.prg import Stream

PRIME = 2**256 + 297
SECRET_BYTES = 32
ELEMENT_BYTES = 33
SHARE_BYTES = 1 + ELEMENT_BYTES
MAX_SHARES = 255
# 257 bits hold every element; the 7 bits above them in 33 bytes are dropped.
_ELEMENT_MASK = (1 << 257) - 1


class WrongShares(ValueError):
    """Shares that cannot belong together: too few, one point twice, or no secret of that size."""


class Share:
    """The polynomial's value at ``point`` (1..255)."""

    __slots__ = ("_value", "point")

    def __init__(self, point: int, value: int) -> None:
        if not 1 <= point <= MAX_SHARES:
            raise ValueError(f"a share's point lies between 1 and {MAX_SHARES}")
        if not 0 <= value < PRIME:
            raise ValueError("a share's value is an element of the field")
        self.point = point
        self._value = value

    def reveal(self) -> int:
        """The value, for the one message that must carry it and for ``combine``."""
        return self._value

    def to_bytes(self) -> bytes:
        """34 bytes: the point (u8), the value (33 bytes, little-endian)."""
        return bytes([self.point]) + self._value.to_bytes(ELEMENT_BYTES, "little")

    @classmethod
    def from_bytes(cls, data: bytes) -> Share:
        """Raises ``MalformedMessage`` for another length, point 0 or a value past the field."""
        reader = Reader(data)
        point = reader.u8()
        value = int.from_bytes(reader.raw(ELEMENT_BYTES), "little")
        reader.finish()
        if point == 0 or value >= PRIME:
            raise MalformedMessage("A share's point or value is out of range.")
        return cls(point, value)

    def __repr__(self) -> str:
        return f"Share(point={self.point}, <secret>)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Share) and hmac.compare_digest(self.to_bytes(), other.to_bytes())

    __hash__ = None  # type: ignore[assignment]  # a secret is no dictionary key

    def __reduce__(self) -> str:
        raise TypeError("a share is not pickled")


def split(secret: bytes, threshold: int, count: int, stream: Stream) -> tuple[Share, ...]:
    """``count`` shares at the points 1..count, any ``threshold`` of which give the secret.

    ``stream`` yields the polynomial's coefficients and must serve nothing else.
    """
    return split_at(secret, threshold, range(1, count + 1), stream)


def split_at(
    secret: bytes, threshold: int, points: Sequence[int], stream: Stream
) -> tuple[Share, ...]:
    """The same at these points, distinct and from 1 to 255."""
    count = len(points)
    if not 1 <= threshold <= count <= MAX_SHARES:
        raise ValueError(f"needed: 1 <= threshold ({threshold}) <= shares ({count}) <= 255")
    if len(set(points)) != count or not 1 <= min(points) <= max(points) <= MAX_SHARES:
        raise ValueError("the points of shares are distinct and from 1 to 255")
    if len(secret) > SECRET_BYTES:
        raise ValueError(f"a secret has at most {SECRET_BYTES} bytes")
    coefficients = [int.from_bytes(secret, "little")]
    coefficients += [_element(stream) for _ in range(threshold - 1)]
    return tuple(Share(point, _evaluate(coefficients, point)) for point in points)


def combine(shares: Iterable[Share], threshold: int, size: int) -> bytes:
    """The secret of ``size`` bytes from the first ``threshold`` of the shares.

    Raises ``WrongShares``; shares that are merely false may give a false secret instead.
    """
    chosen = list(shares)[:threshold]
    points = [share.point for share in chosen]
    if len(chosen) < threshold:
        raise WrongShares(f"{len(chosen)} shares are too few; {threshold} are needed.")
    if len(set(points)) != len(points):
        raise WrongShares("Two shares lie at the same point.")
    weights = _lagrange_at_zero(points)
    products = (weight * share.reveal() for weight, share in zip(weights, chosen, strict=True))
    value = sum(products) % PRIME
    if value >> (8 * size):
        raise WrongShares("The shares do not combine to a secret of this size.")
    return value.to_bytes(size, "little")


def _element(stream: Stream) -> int:
    """A uniform element by rejection: 257 bits at a time, about two tries."""
    while True:
        value = int.from_bytes(stream.raw(ELEMENT_BYTES), "little") & _ELEMENT_MASK
        if value < PRIME:
            return value


def _evaluate(coefficients: Sequence[int], point: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % PRIME
    return value


def _lagrange_at_zero(points: Sequence[int]) -> list[int]:
    """Weights w_i with f(0) = Σ w_i f(x_i) for every f of degree below len(points)."""
    weights = []
    for own in points:
        numerator = denominator = 1
        for other in points:
            if other != own:
                numerator = numerator * other % PRIME
                denominator = denominator * (other - own) % PRIME
        weights.append(numerator * pow(denominator, -1, PRIME) % PRIME)
    return weights
