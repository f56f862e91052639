"""The plan's linear and pooling maps on plain NumPy arrays, for the compiler and the oracle.

Every map takes and yields a batch (N, C, H, W) or (N, features), in float64 or int64. Written to
be evidently right and independent of the parties' ring arithmetic, which is tested against it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Pair = tuple[int, int]
Numbers = NDArray[Any]  # float64 or int64, the same in and out

# A float64 holds every integer up to here; sums of products below it are exact in any order.
_EXACT = 2**53
_LIMB = (1 << 16) - 1


def windows(
    x: Numbers, kernel: Pair, stride: Pair, padding: Pair, fill: float | int = 0
) -> Numbers:
    """Every window, (N, C, H', W', kernel height, kernel width); padding holds ``fill``."""
    (top, left) = padding
    padded = np.pad(
        x, ((0, 0), (0, 0), (top, top), (left, left)), constant_values=np.asarray(fill, x.dtype)
    )
    every = sliding_window_view(padded, kernel, axis=(2, 3))
    return every[:, :, :: stride[0], :: stride[1]]


def sum_pool(x: Numbers, kernel: Pair, stride: Pair, padding: Pair) -> Numbers:
    return np.asarray(windows(x, kernel, stride, padding).sum(axis=(4, 5), dtype=x.dtype))


def max_pool(x: Numbers, kernel: Pair, stride: Pair, padding: Pair) -> Numbers:
    """The maximum over the window's part inside the image."""
    lowest: Any = -np.inf if x.dtype == np.float64 else np.iinfo(np.int64).min
    return np.asarray(windows(x, kernel, stride, padding, lowest).max(axis=(4, 5)))


def convolve(x: Numbers, weight: Numbers, stride: Pair, padding: Pair, groups: int) -> Numbers:
    """Cross-correlation as torch's: weight (out, in / groups, height, width), zero padding."""
    kernel = (weight.shape[2], weight.shape[3])
    per_group = weight.reshape(groups, weight.shape[0] // groups, -1)  # (G, out/G, in/G*h*w)
    results = []
    for image in x:
        every = windows(image[None], kernel, stride, padding)[0]  # (C, H', W', h, w)
        size = every.shape[1:3]
        columns = every.transpose(0, 3, 4, 1, 2).reshape(groups, per_group.shape[2], -1)
        results.append(matmul(per_group, columns).reshape(-1, *size))  # (out, H', W')
    return np.stack(results)


def dense(x: Numbers, weight: Numbers) -> Numbers:
    """x (N, in) by weight (out, in) -> (N, out)."""
    return matmul(x, weight.T)


def matmul(a: Numbers, b: Numbers) -> Numbers:
    """a @ b; exact for int64: at BLAS speed, in 16-bit limbs of the larger factor if need be.

    Raises OverflowError where the sums could leave int64.
    """
    if a.dtype == np.float64 or not a.size or not b.size:
        return np.asarray(a @ b)
    left, right = int(np.abs(a).max()), int(np.abs(b).max())
    largest = a.shape[-1] * left * right
    if largest < _EXACT:
        return np.asarray(a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)
    if largest >= 2**62:
        raise OverflowError("the sums of products leave int64")
    if left > right:
        return np.asarray(matmul(a & _LIMB, b) + (matmul(a >> 16, b) << 16))
    return np.asarray(matmul(a, b & _LIMB) + (matmul(a, b >> 16) << 16))
