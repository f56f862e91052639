"""The operations of a plan: frozen, public, each knowing its result's shape, scale and gates.

Values are numbered: 0 is the image (C, H, W), operation i yields value i + 1. A scale is the
number of fraction bits of a value. ``gates`` lists the nonlinear steps in order, one request each.
Shapes leave the batch dimension out. ``ValueError`` says what does not fit; the plan says where.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from primia.fss.geometry import KeyShape, packed_bytes
from primia.mpc.reduction import reduction, window_count

RING_BITS = 32
MAX_SHIFT = 24
# A float64 holds sums below 2^53 exactly: products of two 16-bit limbs leave 21 bits for terms.
MAX_TERMS = 1 << 21
# A pooled sum may use up this many terms (a global pool over 128 x 128).
MAX_POOL = 1 << 14
# A maximum is a tree of comparisons written out as index lists.
MAX_POOL_SIDE = 32
# The truncation gate keeps two bits below the unit of its result, so that dropping bits from the
# comparison costs less than one unit.
GUARD_BITS = 2

Shape = tuple[int, ...]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Gate:
    """One nonlinear step: ``comparisons`` an image, one request of the session.

    ``shift``: bits truncated with the ReLU. The comparison looks at ``bits`` of the 32 bits.
    ``payloads``: values selected by each comparison (2 in a tournament: the value and its index).
    """

    layer: str
    comparisons: int
    shift: int = 0
    drop_low: int = 0
    drop_high: int = 0
    payloads: int = 1

    @property
    def bits(self) -> int:
        return RING_BITS - self.drop_low - self.drop_high

    @property
    def key(self) -> KeyShape:
        """The sign bit is dealt apart; the key compares the bits below it."""
        return KeyShape(self.bits - 1)

    def request_bytes(self, batch: int) -> int:
        """P1 -> P0: a bit and two pads a payload for every comparison."""
        count = batch * self.comparisons
        return packed_bytes(count) + 8 * self.payloads * count

    def response_bytes(self, batch: int) -> int:
        """P0 -> P1: a masked value a payload and a bit for every comparison."""
        count = batch * self.comparisons
        return packed_bytes(count) + 4 * self.payloads * count

    def offline_bytes(self, batch: int) -> int:
        """P1 -> P0, before the image exists."""
        return 4 * self.payloads * batch * self.comparisons


@dataclass(frozen=True)
class Convolution:
    """2-D cross-correlation with bias; ``weight_bits``: fraction bits of the weights."""

    kind: ClassVar[str] = "convolution"
    layer: str
    source: int
    out_channels: int
    kernel: Pair
    stride: Pair
    padding: Pair
    groups: int
    weight_bits: int

    @property
    def sources(self) -> tuple[int, ...]:
        return (self.source,)

    def weight_shape(self, shape: Shape) -> Shape:
        return (self.out_channels, shape[0] // self.groups, *self.kernel)

    def shape(self, shape: Shape) -> Shape:
        channels, *_ = _image(shape)
        if self.groups < 1 or channels % self.groups or self.out_channels % self.groups:
            raise ValueError(f"{self.groups} groups do not divide its channels")
        if math.prod(self.weight_shape(shape)[1:]) > MAX_TERMS:
            raise ValueError(f"a sum of more than {MAX_TERMS} products is not exact")
        return (self.out_channels, *_windows(shape, self.kernel, self.stride, self.padding))

    def scale(self, scale: int) -> int:
        return scale + self.weight_bits

    def gates(self, shape: Shape) -> tuple[Gate, ...]:
        return ()


@dataclass(frozen=True)
class Dense:
    """A fully connected layer with bias on a vector."""

    kind: ClassVar[str] = "dense"
    layer: str
    source: int
    out_features: int
    weight_bits: int

    @property
    def sources(self) -> tuple[int, ...]:
        return (self.source,)

    def weight_shape(self, shape: Shape) -> Shape:
        return (self.out_features, shape[0])

    def shape(self, shape: Shape) -> Shape:
        if len(shape) != 1:
            raise ValueError(f"it takes a vector, not {shape}")
        if shape[0] > MAX_TERMS:
            raise ValueError(f"a sum of more than {MAX_TERMS} products is not exact")
        return (self.out_features,)

    def scale(self, scale: int) -> int:
        return scale + self.weight_bits

    def gates(self, shape: Shape) -> tuple[Gate, ...]:
        return ()


@dataclass(frozen=True)
class Relu:
    """ReLU with truncation by ``shift`` bits; the result is 0 or 1 unit above the exact one.

    Its comparison drops s = max(0, shift - 2) low bits, and ``drop_high`` high ones where a
    calibration shows 2^s - 2^(31 - drop_high) <= y < 2^(31 - drop_high).
    """

    kind: ClassVar[str] = "relu"
    layer: str
    source: int
    shift: int
    drop_high: int = 0

    @property
    def sources(self) -> tuple[int, ...]:
        return (self.source,)

    @property
    def drop_low(self) -> int:
        return max(0, self.shift - GUARD_BITS)

    def shape(self, shape: Shape) -> Shape:
        _check_bits(self.shift, self.drop_low, self.drop_high)
        return shape

    def scale(self, scale: int) -> int:
        return scale - self.shift

    def gates(self, shape: Shape) -> tuple[Gate, ...]:
        count = math.prod(shape)
        return (Gate(self.layer, count, self.shift, self.drop_low, self.drop_high),)


@dataclass(frozen=True)
class MaxPool:
    """Separable maxima, along the rows and then the columns, without truncation.

    Padding positions are ignored. ``drop_low``: low bits its comparisons leave out (differences
    below 2^drop_low may count as equal: the result is then the smaller of the two).
    """

    kind: ClassVar[str] = "max_pool"
    layer: str
    source: int
    kernel: Pair
    stride: Pair
    padding: Pair
    drop_low: int = 0
    drop_high: int = 0

    @property
    def sources(self) -> tuple[int, ...]:
        return (self.source,)

    def shape(self, shape: Shape) -> Shape:
        _check_bits(0, self.drop_low, self.drop_high)
        channels, *_ = _image(shape)
        if max(self.kernel) > MAX_POOL_SIDE:
            raise ValueError(f"it compares more than {MAX_POOL_SIDE} values along an axis")
        if any(2 * pad > size for pad, size in zip(self.padding, self.kernel, strict=True)):
            raise ValueError("its padding is over half its kernel")
        return (channels, *_windows(shape, self.kernel, self.stride, self.padding))

    def scale(self, scale: int) -> int:
        return scale

    def gates(self, shape: Shape) -> tuple[Gate, ...]:
        channels, height, width = shape
        _, _, out_width = self.shape(shape)
        rows = reduction(width, self.kernel[1], self.stride[1], self.padding[1])
        columns = reduction(height, self.kernel[0], self.stride[0], self.padding[0])
        counts = [channels * height * len(level.left) for level in rows.levels]
        counts += [channels * out_width * len(level.left) for level in columns.levels]
        return tuple(Gate(self.layer, n, 0, self.drop_low, self.drop_high) for n in counts)


@dataclass(frozen=True)
class Add:
    """Left and right, each shifted left to a common scale."""

    kind: ClassVar[str] = "add"
    layer: str
    left: int
    right: int
    left_shift: int
    right_shift: int

    @property
    def sources(self) -> tuple[int, ...]:
        return (self.left, self.right)

    def shape(self, left: Shape, right: Shape) -> Shape:
        if left != right:
            raise ValueError(f"it adds {left} and {right}")
        return left

    def scale(self, left: int, right: int) -> int:
        if left + self.left_shift != right + self.right_shift:
            raise ValueError("it adds values of different scales")
        return left + self.left_shift

    def gates(self, left: Shape, right: Shape) -> tuple[Gate, ...]:
        return ()


@dataclass(frozen=True)
class SumPool:
    """Average pooling without its 1/k, padded with zeros."""

    kind: ClassVar[str] = "sum_pool"
    layer: str
    source: int
    kernel: Pair
    stride: Pair
    padding: Pair

    @property
    def sources(self) -> tuple[int, ...]:
        return (self.source,)

    def shape(self, shape: Shape) -> Shape:
        channels, *_ = _image(shape)
        if math.prod(self.kernel) > MAX_POOL:
            raise ValueError(f"it sums more than {MAX_POOL} values")
        return (channels, *_windows(shape, self.kernel, self.stride, self.padding))

    def scale(self, scale: int) -> int:
        return scale

    def gates(self, shape: Shape) -> tuple[Gate, ...]:
        return ()


@dataclass(frozen=True)
class Flatten:
    kind: ClassVar[str] = "flatten"
    layer: str
    source: int

    @property
    def sources(self) -> tuple[int, ...]:
        return (self.source,)

    def shape(self, shape: Shape) -> Shape:
        return (math.prod(shape),)

    def scale(self, scale: int) -> int:
        return scale

    def gates(self, shape: Shape) -> tuple[Gate, ...]:
        return ()


Operation = Convolution | Dense | Relu | MaxPool | Add | SumPool | Flatten
Linear = Convolution | Dense
OPERATIONS: tuple[type[Operation], ...] = (
    Convolution,
    Dense,
    Relu,
    MaxPool,
    Add,
    SumPool,
    Flatten,
)


def tournament(layer: str, classes: int) -> tuple[Gate, ...]:
    """The gates of ``label``: ceil(log2 classes) deep; exact, the index carried along."""
    levels = reduction(classes, classes, 1, 0).levels
    return tuple(Gate(layer, len(level.left), payloads=2) for level in levels)


def _image(shape: Shape) -> Shape:
    if len(shape) != 3:
        raise ValueError(f"it takes channels x height x width, not {shape}")
    return shape


def _windows(shape: Shape, kernel: Pair, stride: Pair, padding: Pair) -> Pair:
    if min(kernel) < 1 or min(stride) < 1 or min(padding) < 0:
        raise ValueError("its kernel or stride is below one or its padding below zero")
    height, width = (
        window_count(*axis) for axis in zip(shape[1:], kernel, stride, padding, strict=True)
    )
    if height < 1 or width < 1:
        raise ValueError(f"its kernel {kernel} does not fit into {shape}")
    return height, width


def _check_bits(shift: int, drop_low: int, drop_high: int) -> None:
    if not 0 <= shift <= MAX_SHIFT:
        raise ValueError(f"its shift is not between 0 and {MAX_SHIFT}")
    if min(drop_low, drop_high) < 0 or drop_low + drop_high > RING_BITS - 2:
        raise ValueError("its comparison keeps fewer than two bits")
