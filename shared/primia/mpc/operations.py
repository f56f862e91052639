"""The operations of a plan: frozen, public, each knowing its result's shape, scale and gates.

Values are numbered: 0 is the image (C, H, W), operation i yields value i + 1. A scale is the
number of fraction bits of a value, its width the n of its ring Z_2^n: 32, or less for what only
ReLU and max pooling read. ``gates`` lists the nonlinear steps in order, one request each.
Shapes leave the batch dimension out. ``ValueError`` says what does not fit; the plan says where.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

from primia.mpc.gate_shape import RING_BITS, WAYS, Gate
from primia.mpc.reduction import Reduction, reduction, window_count

# Bits of the narrowest value: a sign and one more.
MIN_WIDTH = 2
# A value keeps this many bits at least when it is narrowed after a linear layer.
MAX_SHIFT = 24
# A float64 holds sums below 2^53 exactly: products of two 16-bit limbs leave 21 bits for terms.
MAX_TERMS = 1 << 21
# A pooled sum may use up this many terms (a global pool over 128 x 128).
MAX_POOL = 1 << 14
# A maximum is a tree of comparisons written out as index lists.
MAX_POOL_SIDE = 32

# Of a field: a plan names it only where it is not the default.
OPTIONAL = {"optional": True}

Shape = tuple[int, ...]
Pair = tuple[int, int]


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

    def width(self, width: int) -> int:
        return _whole(width)


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

    def width(self, width: int) -> int:
        return _whole(width)


@dataclass(frozen=True)
class Narrow:
    """Less of the ring: the ``low`` lowest bits are rounded off, the ``high`` highest dropped.

    Each party shifts its own share: no request. The result is the value over 2^low rounded up or
    down, up with the probability of the fraction (Mohassel, Zhang: SecureML, IEEE S&P 2017, section
    4.1), in Z_2^(width - low - high), where a wrap-around cannot happen. It must fit there.
    """

    kind: ClassVar[str] = "narrow"
    layer: str
    source: int
    low: int
    high: int = 0

    @property
    def sources(self) -> tuple[int, ...]:
        return (self.source,)

    def shape(self, shape: Shape) -> Shape:
        return shape

    def scale(self, scale: int) -> int:
        return scale - self.low

    def width(self, width: int) -> int:
        if width - self.low - self.high < MIN_WIDTH:
            raise ValueError(f"it keeps fewer than {MIN_WIDTH} of {width} bits")
        return width - self.low - self.high


@dataclass(frozen=True)
class Relu:
    """max(x, 0) of a value of any width, in Z_2^32; exact, but for ``coarse``: of a value within
    2^(coarse - 1) of zero either may come out, itself or zero."""

    kind: ClassVar[str] = "relu"
    layer: str
    source: int
    coarse: int = 0

    @property
    def sources(self) -> tuple[int, ...]:
        return (self.source,)

    def shape(self, shape: Shape) -> Shape:
        return shape

    def scale(self, scale: int) -> int:
        return scale

    def width(self, width: int) -> int:
        _check_coarse(self.coarse, width)
        return RING_BITS

    def gates(self, shape: Shape, width: int) -> tuple[Gate, ...]:
        return (Gate(self.layer, math.prod(shape), width, width < RING_BITS, self.coarse),)


@dataclass(frozen=True)
class MaxPool:
    """Separable maxima, along the rows and then the columns, in the ring of its input.

    With ``relu`` the last gate takes the maximum of its values and zero, in Z_2^32. Padding
    positions are ignored. With ``coarse``, of values that differ by less than 2^coarse any may be
    chosen at each of its gates. ``ways``: values that a gate takes the maximum of, three where that
    saves requests, or always two, which takes fewer comparisons.
    """

    kind: ClassVar[str] = "max_pool"
    layer: str
    source: int
    kernel: Pair
    stride: Pair
    padding: Pair
    coarse: int = 0
    ways: int = field(default=WAYS, metadata=OPTIONAL)
    relu: bool = field(default=False, metadata=OPTIONAL)

    @property
    def sources(self) -> tuple[int, ...]:
        return (self.source,)

    def shape(self, shape: Shape) -> Shape:
        channels, *_ = _image(shape)
        if not 2 <= self.ways <= WAYS:
            raise ValueError(f"it compares {self.ways} values at a time")
        if max(self.kernel) > MAX_POOL_SIDE:
            raise ValueError(f"it compares more than {MAX_POOL_SIDE} values along an axis")
        if any(2 * pad > size for pad, size in zip(self.padding, self.kernel, strict=True)):
            raise ValueError("its padding is over half its kernel")
        return (channels, *_windows(shape, self.kernel, self.stride, self.padding))

    def scale(self, scale: int) -> int:
        return scale

    def width(self, width: int) -> int:
        _check_coarse(self.coarse, width)
        return RING_BITS if self.relu else width

    def gates(self, shape: Shape, width: int) -> tuple[Gate, ...]:
        """``ValueError`` where no gate can take the ReLU."""
        channels, height, columns = shape
        _, _, out_columns = self.shape(shape)
        across, down = self.trees(height, columns)
        levels = [(channels * height, level) for level in across.levels]
        levels += [(channels * out_columns, level) for level in down.levels]
        gates = [
            Gate(self.layer, n * level.count, width, coarse=self.coarse, ways=level.ways)
            for n, level in levels
        ]
        if self.relu:
            gates[-1:] = [_with_zero(gate) for gate in gates[-1:]]
            if not gates or (self.coarse and gates[-1].ways > WAYS):
                raise ValueError("its last gate can take no ReLU")
        return tuple(gates)

    def trees(self, height: int, columns: int) -> tuple[Reduction, Reduction]:
        """Maxima along the rows, then along the columns."""
        across = columns, self.kernel[1], self.stride[1], self.padding[1], self.ways
        down = reduction(
            height, self.kernel[0], self.stride[0], self.padding[0], self.ways, self.relu
        )
        return reduction(*across, self.relu and not down.levels), down


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

    def width(self, left: int, right: int) -> int:
        return _whole(left, right)


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

    def width(self, width: int) -> int:
        return _whole(width)


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

    def width(self, width: int) -> int:
        return width


Operation = Convolution | Dense | Narrow | Relu | MaxPool | Add | SumPool | Flatten
Linear = Convolution | Dense
OPERATIONS: tuple[type[Operation], ...] = (
    Convolution,
    Dense,
    Narrow,
    Relu,
    MaxPool,
    Add,
    SumPool,
    Flatten,
)


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


def _with_zero(gate: Gate) -> Gate:
    return replace(gate, ways=gate.ways + 1, widen=gate.width < RING_BITS)


def _whole(*widths: int) -> int:
    if min(widths) < RING_BITS:
        raise ValueError("it reads a narrow value, which only ReLU and max pooling do")
    return RING_BITS


def _check_coarse(coarse: int, width: int) -> None:
    if not 0 <= coarse <= width - MIN_WIDTH:
        raise ValueError(f"its comparison keeps fewer than {MIN_WIDTH} of {width} bits")
