"""What the parties and the dealer expand from seeds: one independent stream for every item.

P1's seed yields all of P1's masks, so P1 knows its side of every value before the image exists;
P0's seed yields its halves r0 of the opened masks and c0 of the hidden bits, and its key roots. The
weight masks A come from a seed of their own, one a model version. Items of a gate, numbered:

    r           half of the mask r of an opened value               P0, P1
    roots       128-bit roots of a comparison's keys                P0, P1
    c           half of the bit c that hides a comparison's bit     P0, P1
    p, pr, pmu  shares of factors, and of them times r and mu       either (``selection``)
    mu          share of the wrap term mu of an opened value        either (widening gates)
    mask        B', P1's share of a payload of the gate's result    P1
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from primia.fss.geometry import KeyShape
from primia.fss.kernel import Words
from primia.mpc.gate_shape import RING_BITS, Gate
from primia.mpc.operations import Convolution, Linear, Shape
from primia.prg import Seed, Stream
from primia.ring import Ring, Window


class GateStreams:
    """A party's streams of one gate, read block by block in the same order by dealer and party."""

    def __init__(self, seed: Seed, gate: int) -> None:
        self._seed = seed
        self._gate = gate
        self._streams: dict[str, Stream] = {}

    def words(self, item: str, count: int, number: int = 0) -> Ring:
        return self._stream(f"{item}.{number}").words(count)

    def bits(self, item: str, count: int, number: int = 0) -> NDArray[np.uint8]:
        """``count`` is a multiple of 8 in all but the last block, so no bit is skipped."""
        return self._stream(f"{item}.{number}").bits(count)

    def roots(self, count: int, number: int = 0) -> Words:
        words = self._stream(f"roots.{number}").words(4 * count)
        return words.view("<u8").reshape(count, 2)

    def _stream(self, item: str) -> Stream:
        if item not in self._streams:
            self._streams[item] = Stream(self._seed, _label(self._gate, item))
        return self._streams[item]


def _label(gate: int, item: str) -> str:
    return f"gate/{gate}/{item}"


def gate_mask(client: Seed, gate: int, payload: int, first: int, count: int) -> Ring:
    """``count`` values of B' from the one numbered ``first`` on."""
    return Stream(client, _label(gate, f"mask.{payload}"), 4 * first).words(count)


def image_mask(client: Seed, batch: int, shape: Shape, first: int = 0) -> Ring:
    """B of ``batch`` images from ``first`` on, (N, C, H, W)."""
    return Stream(client, "image", 4 * first * math.prod(shape)).words((batch, *shape))


def result_mask(client: Seed, layer: str, batch: int, shape: Shape, first: int = 0) -> Ring:
    """C1 of a linear layer, (N, *shape of its result), of ``batch`` images from ``first`` on."""
    return Stream(client, f"product/{layer}", 4 * first * math.prod(shape)).words((batch, *shape))


def weight_mask(version: Seed, layer: str, shape: Shape) -> Ring:
    """A of a linear layer, in the shape of its weight."""
    return Stream(version, f"weight/{layer}").words(shape)


def window(op: Linear) -> Window | None:
    return Window(op.stride, op.padding, op.groups) if isinstance(op, Convolution) else None


def compared(gate: Gate, values: Ring) -> Ring:
    """The bits of opened values that a comparison looks at."""
    return ((values + np.uint32(gate.centre)) & ones(gate.width)) >> np.uint32(gate.coarse)


def compared_mask(gate: Gate, r: Ring) -> Ring:
    """The same of their masks r: r, or (r >> coarse) + 1, so that the difference is rounded down.

    Then a gate's bit is 1 only where the value (and ``centre``) is not negative.
    """
    if not gate.coarse:
        return r & ones(gate.width)
    rounded = ((r & ones(gate.width)) >> np.uint32(gate.coarse)) + np.uint32(1)
    return rounded & ones(gate.width - gate.coarse)


def below_sign(key: KeyShape, bits: Ring) -> Ring:
    """The compared bits below their most significant one."""
    return bits & ones(key.domain_bits)


def sign(gate: Gate, values: Ring) -> Ring:
    """The most significant bit in Z_2^width, 0 or 1."""
    return (values >> np.uint32(gate.width - 1)) & np.uint32(1)


def ones(bits: int) -> np.uint32:
    """2^bits - 1."""
    return np.uint32((1 << bits) - 1 if bits < RING_BITS else 0xFFFFFFFF)
