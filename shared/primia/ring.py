"""Tensors over Z_2^32 (uint32, two's complement) and exact linear maps on them.

Where the processor has dot products of bytes, ``primia.digits`` computes products over the ring;
elsewhere, and for grouped convolutions, float64 on 16-bit limbs, which BLAS does fast: a sum of
products stays exact below 2^53. Weights that are small next to that bound ("narrow") meet the two
limbs of the input in one batch of two; two full 32-bit factors need three limb products, for the
fourth vanishes mod 2^32. A map that would not be exact is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primia import digits
from primia.errors import InvalidInput

Ring = NDArray[np.uint32]
Real = NDArray[np.float64]
Pair = tuple[int, int]

BITS = 32
LIMB_BITS = 16
_LIMB = np.uint32((1 << LIMB_BITS) - 1)
# Integers up to here are exact in float64 (IEEE 754 binary64: 53 significand bits).
EXACT = 1 << 53
# Terms a sum of products of two 16-bit limbs may have.
MAX_TERMS = EXACT >> (2 * LIMB_BITS)
# Elements of the images whose limbs are held at a time, 16 bytes each.
_GROUP = 1 << 22


@dataclass(frozen=True)
class Window:
    """Where a convolution's or a pool's kernel goes."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    groups: int = 1


# Prepares a weight: ``LinearMap``, or what computes the same elsewhere (``primia.ring_gpu``).
MakeMap = Callable[[NDArray[Any], Window | None], Callable[[Ring], Ring]]


class LinearMap:
    """x -> weight * x over the ring, the weight prepared once; read-only, so sessions share it.

    ``weight``: (out, in/groups, kh, kw) with a ``Window``, or (out, in) without. It is kept as 1
    to 4 bytes an element.
    """

    def __init__(self, weight: NDArray[Any], window: Window | None = None) -> None:
        if weight.ndim != (4 if window else 2) or weight.dtype not in (np.int32, np.uint32):
            raise InvalidInput("A linear map takes an int32 or uint32 weight of 4 or 2 dimensions.")
        terms = math.prod(weight.shape[1:])
        if terms > MAX_TERMS:
            raise InvalidInput(f"A sum of {terms} products is not exact; {MAX_TERMS} are.")
        self._shape = weight.shape
        self._map: Callable[[Ring], Ring]
        if digits.suits(weight, window.groups if window else 1):
            self._map = digits.linear(weight, (window.stride, window.padding) if window else None)
        else:
            self._map = FloatMap(weight, window)

    def __call__(self, x: Ring) -> Ring:
        """x: (N, in, H, W) or (N, in) -> (N, out, H', W') or (N, out), exact mod 2^32."""
        return self._map(x)

    def __repr__(self) -> str:
        return f"LinearMap(<{self._shape}>)"


class FloatMap:
    """As ``LinearMap``, on any machine; images in groups, so that limbs take bounded memory.

    A narrow weight keeps 8 bytes an element, a full one 4 (its limbs are made at use).
    """

    def __init__(self, weight: NDArray[Any], window: Window | None) -> None:
        terms = math.prod(weight.shape[1:])
        self.window = window
        signed = weight.view(np.int32)
        largest = int(np.abs(signed.astype(np.int64)).max(initial=0))
        self.narrow = largest * terms * int(_LIMB) <= EXACT
        self._weight: NDArray[Any] = (
            signed.astype(np.float64) if self.narrow else weight.view(np.uint32)
        )

    def __call__(self, x: Ring) -> Ring:
        size = max(1, _GROUP // max(1, math.prod(x.shape[1:])))
        groups = [self._apply(x[at : at + size]) for at in range(0, len(x), size)]
        return groups[0] if len(groups) == 1 else np.concatenate(groups)

    def _apply(self, x: Ring) -> Ring:
        count = len(x)
        limbs = np.empty((2 * count, *x.shape[1:]), dtype=np.float64)
        np.copyto(limbs[:count], x & _LIMB)
        np.copyto(limbs[count:], x >> LIMB_BITS)
        if self.narrow:
            low, high = np.split(self._product(limbs, self._weight), 2)
            return _join(low, high)
        low, high = np.split(self._product(limbs, (self._weight & _LIMB).astype(np.float64)), 2)
        cross = self._product(limbs[:count], (self._weight >> LIMB_BITS).astype(np.float64))
        result = _join(low, high)
        result += _join(None, cross)
        return result

    def _product(self, x: Real, weight: Real) -> Real:
        if self.window is None:
            return np.asarray(x @ weight.T)
        return _convolve(x, weight, self.window)


def _join(low: Real | None, high: Real) -> Ring:
    """low + 2^16 high mod 2^32, of integers in float64."""
    total = high.astype(np.int64)
    total <<= LIMB_BITS
    if low is not None:
        total += low.astype(np.int64)
    return total.astype(np.uint32)  # wraps


def _convolve(x: Real, weight: Real, window: Window) -> Real:
    import torch  # only here: the web processes never need it

    with torch.inference_mode():
        result = torch.nn.functional.conv2d(
            torch.from_numpy(x),
            torch.from_numpy(weight),
            None,
            window.stride,
            window.padding,
            1,
            window.groups,
        )
    return np.asarray(result.numpy())


def load(threads: int) -> None:
    """Load what products need, before they are waited for; this thread's take ``threads``."""
    import torch

    torch.set_num_threads(threads)


def sum_pool(x: Ring, kernel: Pair, window: Window) -> Ring:
    """Sums over windows of the zero-padded (N, C, H, W), rows first, then columns."""
    (pad_h, pad_w), (step_h, step_w) = window.padding, window.stride
    padded = np.pad(x, ((0, 0), (0, 0), (pad_h, pad_h), (pad_w, pad_w)))
    rows = _slide(padded, kernel[1], step_w)  # (N, C, H + 2p, W')
    return np.swapaxes(_slide(np.swapaxes(rows, 2, 3), kernel[0], step_h), 2, 3).copy()


def _slide(x: Ring, kernel: int, step: int) -> Ring:
    """Sums of ``kernel`` neighbours along the last axis."""
    count = (x.shape[-1] - kernel) // step + 1
    stop = step * (count - 1) + 1
    total = x[..., :stop:step].copy()
    for offset in range(1, kernel):
        total += x[..., offset : offset + stop : step]
    return total


def sign_bit(x: Ring) -> Ring:
    """The most significant bit, 0 or 1: 1 for a negative number."""
    return x >> np.uint32(BITS - 1)


def bias_shape(rank: int) -> tuple[int, ...]:
    """How a vector of biases broadcasts over a result of ``rank`` dimensions."""
    return (-1, *(1,) * (rank - 2))
