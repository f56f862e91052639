"""Tensors over Z_2^64 (uint64, two's complement) and exact linear maps on them.

As ``primia.ring`` for 32 bits: on signed bytes where the processor has dot products of them.
Elsewhere a product runs in float64 on limbs, and sums of products stay exact below 2^53. A narrow
weight (the owner's) meets the limbs of the input in one batch; two full factors (masks) take six
limb products, of 22, 21 and 21 bits with signs: the other three vanish mod 2^64. Sums of too many
terms are split along the input's channels, at no further cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primia import digits
from primia.errors import InvalidInput
from primia.prg import Stream
from primia.ring import EXACT, Real, Window

Words = NDArray[np.uint64]
# Prepares a weight: ``LinearMap64``, or what computes the same elsewhere (``primia.ring_gpu``).
MakeMap64 = Callable[[NDArray[Any], Window | None], Callable[[Words], Words]]

BITS = 64
# Full factors: the second limb times the third lies above 2^64.
_STARTS = (0, 22, 43)
_WIDTHS = (22, 21, 21)
# Limbs have magnitudes up to 2^21: 2048 of their products stay within 2^53.
_FULL_TERMS = EXACT >> 42
# Limbs of the input of a narrow weight; fewer bits are not worth the products.
_LEAST_LIMB = 8


class LinearMap64:
    """x -> weight * x over Z_2^64; prepared once and read-only, so sessions share it.

    ``weight``: int32 or uint64, (out, in/groups, kh, kw) with a ``Window``, or (out, in) without.
    """

    def __init__(self, weight: NDArray[Any], window: Window | None = None) -> None:
        if weight.ndim != (4 if window else 2) or weight.dtype not in (np.int32, np.uint64):
            raise InvalidInput("A 64-bit map takes an int32 or uint64 weight of 2 or 4 dimensions.")
        self._shape = weight.shape
        self._map: Callable[[Words], Words]
        if digits.suits(weight, window.groups if window else 1):
            wide = weight.astype(np.int64) if weight.dtype == np.int32 else weight
            self._map = digits.linear(wide, (window.stride, window.padding) if window else None)
        else:
            self._map = FloatMap64(weight, window)

    def __call__(self, x: Words) -> Words:
        """x: (N, in, H, W) or (N, in) -> (N, out, H', W') or (N, out), exact mod 2^64."""
        return self._map(x)

    def __repr__(self) -> str:
        return f"LinearMap64(<{self._shape}>)"


class FloatMap64:
    """As ``LinearMap64``, on any machine. A weight takes 8 bytes an element."""

    def __init__(self, weight: NDArray[Any], window: Window | None = None) -> None:
        self.window = window
        self.narrow = weight.dtype == np.int32
        if self.narrow:
            largest = int(np.abs(weight.astype(np.int64)).max(initial=1))
            terms = math.prod(weight.shape[1:])
            self._width = (EXACT // (largest * terms)).bit_length() - 1
            if self._width < _LEAST_LIMB:
                raise InvalidInput(f"A sum of {terms} products of such weights is not exact.")
        self._weight: NDArray[Any] = weight.astype(np.float64) if self.narrow else weight

    def __call__(self, x: Words) -> Words:
        return self._narrow(x) if self.narrow else self._full(x)

    def _narrow(self, x: Words) -> Words:
        starts = range(0, BITS, self._width)
        limbs = np.concatenate([_low_bits(x >> np.uint64(at), self._width) for at in starts])
        return _join(np.split(self._product(limbs, self._weight), len(starts)), starts)

    def _full(self, x: Words) -> Words:
        total: Words | None = None
        for weight, part in self._split(x):
            result = self._full_product(weight, part)
            total = result if total is None else total + result
        assert total is not None
        return total

    def _split(self, x: Words) -> list[tuple[Words, Words]]:
        """Weight and input in runs of input channels that keep their sums exact."""
        channels = self._weight.shape[1]
        run = _FULL_TERMS // math.prod(self._weight.shape[2:])
        if channels <= run:
            return [(self._weight, x)]
        if run < 1 or (self.window is not None and self.window.groups > 1):
            raise InvalidInput("A sum of so many products within a group is not exact.")
        return [
            (self._weight[:, at : at + run], x[:, at : at + run]) for at in range(0, channels, run)
        ]

    def _full_product(self, weight: Words, x: Words) -> Words:
        limbs = _signed_limbs(x)
        total: Words | None = None
        for i, factor in enumerate(_signed_limbs(weight)):
            kept = len(limbs) - i  # the others vanish mod 2^64
            product = self._product(np.concatenate(limbs[:kept]), factor)
            starts = [_STARTS[i] + start for start in _STARTS[:kept]]
            result = _join(np.split(product, kept), starts)
            total = result if total is None else total + result
        assert total is not None
        return total

    def _product(self, x: Real, weight: Real) -> Real:
        if self.window is None:
            return np.asarray(x @ weight.T)
        return _convolve(x, weight, self.window)


def load(threads: int = 1) -> None:
    """Load what convolutions need, before they are waited for; this thread's take ``threads``."""
    import torch

    torch.set_num_threads(threads)


def _low_bits(x: Words, width: int) -> Real:
    return (x & np.uint64((1 << width) - 1)).astype(np.float64)


def _signed_limbs(x: Words) -> list[Real]:
    """Three limbs with signs, x = l0 + 2^22 l1 + 2^43 l2 mod 2^64."""
    limbs, rest = [], x
    for width in _WIDTHS:
        half = np.uint64(1 << (width - 1))
        low = rest & np.uint64((1 << width) - 1)
        signed = (low ^ half) - half
        limbs.append(signed.view(np.int64).astype(np.float64))
        rest = (rest - signed) >> np.uint64(width)
    return limbs


def _join(parts: Sequence[Real], starts: Sequence[int]) -> Words:
    """The sum of 2^start part mod 2^64, of integers in float64."""
    total = np.zeros(parts[0].shape, np.uint64)
    for part, start in zip(parts, starts, strict=True):
        total += part.astype(np.int64).view(np.uint64) << np.uint64(start)
    return total


def _convolve(x: Real, weight: Real, window: Window) -> Real:
    import torch  # only here: the web processes never need it

    with torch.inference_mode():
        result = torch.nn.functional.conv2d(
            torch.from_numpy(np.ascontiguousarray(x)),
            torch.from_numpy(np.ascontiguousarray(weight)),
            None,
            window.stride,
            window.padding,
            1,
            window.groups,
        )
    return np.asarray(result.numpy())


def truncate(share: Words, party: int, bits: int) -> Words:
    """Share-wise division by 2^bits (Mohassel, Zhang: SecureML, IEEE S&P 2017, section 4.1).

    The shares of y become shares of y / 2^bits rounded up or down, the nearer more often, but for
    a probability of |y| / 2^63 (over the shares), with which the result is of no use.
    """
    if party == 0:
        return share >> np.uint64(bits)
    return -((-share) >> np.uint64(bits))


def uniform(stream: Stream, shape: int | tuple[int, ...]) -> Words:
    """The next uniform elements of a stream."""
    out = np.empty(shape, dtype="<u8")
    stream.fill(out.reshape(-1).view(np.uint8))
    return out


def from_signed(values: NDArray[Any]) -> Words:
    """Signed integers as elements."""
    return values.astype(np.int64).view(np.uint64)
