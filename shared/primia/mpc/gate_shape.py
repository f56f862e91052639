"""The shape of a nonlinear step: what it compares and selects, and what its messages take."""

from __future__ import annotations

from dataclasses import dataclass

from primia.fss.geometry import KeyShape, packed_bytes
from primia.mpc.reduction import Reduction, reduction

RING_BITS = 32
# A gate takes the maximum of three values in one request, of four if one of them is zero.
WAYS = 3


@dataclass(frozen=True)
class Gate:
    """One nonlinear step: ``count`` results an image, one request of the session.

    A result is the maximum of ``ways`` values, the last of them zero: max(y, 0), max(u, v, 0) or
    max(u, v, w, 0), where differences are compared too. Values of Z_2^width are compared with zero,
    all bits but the ``coarse`` lowest; what is selected is ``widen``ed to Z_2^32, or stays in
    Z_2^width. With coarse > 0 a value within 2^(coarse - 1) of zero may fall to the other side; the
    larger of three is missed by less than 2^coarse. Of four ways a gate is exact.
    ``payloads``: values selected together (2 in a tournament: the value and its index).
    """

    layer: str
    count: int
    width: int = RING_BITS
    widen: bool = False
    coarse: int = 0
    payloads: int = 1
    ways: int = 2

    @property
    def bits(self) -> int:
        """Comparisons for each result."""
        return self.ways * (self.ways - 1) // 2

    @property
    def comparisons(self) -> int:
        """Comparisons an image."""
        return self.bits * self.count

    @property
    def lanes(self) -> int:
        """Values opened for each result: y, or u and v (and w), of every payload."""
        return self.payloads * (self.ways - 1)

    @property
    def key(self) -> KeyShape:
        """The sign bit is dealt apart; the key compares the bits below it."""
        return KeyShape(self.width - self.coarse - 1)

    @property
    def centre(self) -> int:
        """What is added before the coarse bits are left out, which rounds down: half of them."""
        return 1 << (self.coarse - 1) if self.coarse else 0

    @property
    def result_width(self) -> int:
        return RING_BITS if self.widen else self.width

    def key_bytes(self, batch: int) -> int:
        """Of all its comparison keys."""
        return self.bits * self.key.key_bytes(batch * self.count)

    def request_bytes(self, batch: int) -> int:
        """P1 -> P0: a number for every payload and a bit for every comparison."""
        count = batch * self.count
        numbers = self.payloads * plane_bytes(count, self.result_width)
        return numbers + self.bits * packed_bytes(count)

    def response_bytes(self, batch: int) -> int:
        """P0 -> P1: a number for every opened value and a bit for every comparison."""
        count = batch * self.count
        return self.lanes * plane_bytes(count, self.width) + self.bits * packed_bytes(count)

    def offline_bytes(self, batch: int) -> int:
        """P1 -> P0, before the image exists."""
        return self.lanes * plane_bytes(batch * self.count, self.width)


def plane_bytes(count: int, width: int) -> int:
    """Bytes of ``count`` numbers of ``width`` bits: whole bytes, then planes of single bits."""
    return (width // 8) * count + (width % 8) * packed_bytes(count)


def tournament(layer: str, classes: int) -> tuple[Gate, ...]:
    """The gates of ``label``: ceil(log3 classes) deep; exact, the index carried along."""
    levels = tournament_tree(classes).levels
    return tuple(Gate(layer, level.count, payloads=2, ways=level.ways) for level in levels)


def tournament_tree(classes: int) -> Reduction:
    return reduction(classes, classes, 1, 0, WAYS)
